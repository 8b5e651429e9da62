"""coopnet_ros: the ROS 2 side of coopnet, its node and its commands."""
