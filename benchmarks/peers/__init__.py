"""The engines that engine_cpu.py and serving_cpu.py compare, each in an environment of its own."""
