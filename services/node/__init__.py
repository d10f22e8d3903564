"""The agent on each machine: stores models on disk, starts and stops workers, and reports the machine's state."""
