"""coopnet_core: co-training of depth, odometry and optical flow from plain video.

No module of this package imports ROS.
"""

__version__ = "0.1.0"
