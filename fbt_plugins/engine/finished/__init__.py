"""What a finished run's models are good for: tested again, loaded, asked about images, exported."""
