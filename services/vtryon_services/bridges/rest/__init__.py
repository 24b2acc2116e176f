"""HTTP in front of the mesh: JSON and forms in, pictures and server-sent events out."""
