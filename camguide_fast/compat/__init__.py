"""Interfaces of other packages over the ops: existing scripts run after a change of their imports."""
