"""Below every part of the method: settings, files, names on a hub, processes, progress."""
