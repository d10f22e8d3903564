"""The platform as processes on one machine, which `corral up` starts, supervises and stops."""
