"""The agent on each machine: keeps models on disk, starts and stops workers, says how the machine is."""
