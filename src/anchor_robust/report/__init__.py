"""What people read of run files: tables now, charts and pages beside them. Needs no torch."""
