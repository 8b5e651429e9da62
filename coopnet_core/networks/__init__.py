"""The depth, odometry and flow networks."""
