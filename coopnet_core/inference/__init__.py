"""Running the networks on a stream of frames."""
