"""One process per GPU, the only home of torch and diffusers. It is started by name."""
