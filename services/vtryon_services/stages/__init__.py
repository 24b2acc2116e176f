"""The four stages, four files each: `__main__`, `service`, `stage`, `settings`."""
