"""Where and how a run is executed: runners, devices, jobs on clusters, checks before the start."""
