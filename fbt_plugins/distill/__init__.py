"""What models teach each other: splices, fusion models, edges, and the distiller that has them all."""
