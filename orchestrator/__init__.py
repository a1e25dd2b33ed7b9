"""Experiment orchestration for mcc_core: sweeps over Ray, their record in an event log, and views of it."""
