"""The run's actors as the coordinator sees them: started, watched, and many called as one."""
