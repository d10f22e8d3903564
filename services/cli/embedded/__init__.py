"""The platform as processes on one machine: what `corral up` starts, watches and stops."""
