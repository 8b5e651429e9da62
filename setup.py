from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "coopnet_ros"
COMMANDS = (
    "coopnet_node",
    "train_from_bags",
    "evaluate",
    "make_demo_bag",
    "play_bag",
    "inspect_bags",
    "record_outputs",
    "demo",
)


def data_files() -> list[tuple[str, list[str]]]:
    """The ament index marker and every file of launch/, config/ and models/, in share/ with the same folders."""
    files = [
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ]
    for top in ("launch", "config", "models"):
        for folder in sorted({path.parent for path in Path(top).rglob("*") if path.is_file()}):
            if "__pycache__" not in folder.parts:
                names = sorted(str(path) for path in folder.iterdir() if path.is_file())
                files.append((f"share/{PACKAGE}/{folder}", names))
    return files


setup(
    name=PACKAGE,
    version="0.1.0",
    packages=find_packages(include=["coopnet_core", "coopnet_core.*", "coopnet_ros", "coopnet_ros.*"]),
    data_files=data_files(),
    python_requires=">=3.10",
    # torch, rosbags, safetensors: from PyPI on a robot as well (constraints.txt); the rest comes with ROS.
    install_requires=["setuptools"],
    extras_require={"test": ["pytest"]},
    zip_safe=True,
    maintainer="coopnet maintainers",
    maintainer_email="maintainers@coopnet.dev",
    description="Depth, odometry, optical flow and a moving mask from one camera, learnt without labels.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"{name} = {PACKAGE}.{name}:main" for name in COMMANDS]},
)
