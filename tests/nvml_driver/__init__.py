"""An NVML driver without GPUs, for the real pynvml: boards with a power curve whose energy is known exactly.

```python
world = World([Device(square(0.4, 100, 400), gain=1.03), Device(constant(250))])
with world.installed():                       # in this process
    sensors, absent = find_gpus(None)
subprocess.run(command, env=world.environ())  # in another: the same boards, the same clock
world.lose(1)                                 # from here on board 1 gives GPU_IS_LOST, everywhere
joules = world.true_energy(0, t0_ns, t1_ns)   # between any two times of time.monotonic_ns()
```
"""

from nvml_driver.build import build
from nvml_driver.curves import Curve, Segment, bursts, constant, piecewise, ramp, square
from nvml_driver.world import Device, Rule, World

__all__ = ["Curve", "Device", "Rule", "Segment", "World", "build", "bursts", "constant", "piecewise", "ramp", "square"]
