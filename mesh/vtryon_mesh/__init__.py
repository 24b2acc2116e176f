"""The mesh around the services, rendered from `mesh.yaml`."""
