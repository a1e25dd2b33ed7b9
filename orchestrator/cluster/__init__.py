"""Ray clusters: starting, joining, sizing, submitting to one."""
