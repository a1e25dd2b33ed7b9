"""MLflow as a view of the event logs; the only room that imports it."""
