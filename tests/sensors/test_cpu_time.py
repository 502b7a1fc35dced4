import os
import subprocess
import sys
import time

from efftrain.sensors.cpu_time import CpuTimeSensor


def test_counts_the_work_of_this_process_and_not_its_sleep():
    sensor = CpuTimeSensor((4.0, 2.0, 10.0), "assumed", "test")
    before, times = sensor.read(), os.times()
    began = time.process_time()
    while time.process_time() - began < 0.05:
        pass
    time.sleep(0.1)
    after, end = sensor.read(), os.times()
    # The kernel's other account of the same seconds, in hundredths.
    assert abs((after - before) - (end.user + end.system - times.user - times.system)) <= 0.03
    assert 0.05 <= after - before < 0.1


def test_says_what_it_is():
    info = CpuTimeSensor((4.0, 2.0, 10.0), "assumed", "4 W per busy thread").info
    assert (info.unit, info.kind, info.watts_per_unit, info.method) == ("s", "cpu_time", (4.0, 2.0, 10.0), "assumed")
    assert "finished child processes" in info.boundary


def test_counts_children_once_they_are_done():
    sensor = CpuTimeSensor((4.0, 2.0, 10.0), "assumed", "test")
    before, times = sensor.read(), os.times()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    after, end = sensor.read(), os.times()
    assert after - before >= 0.3
    children = end.children_user + end.children_system - times.children_user - times.children_system
    own = end.user + end.system - times.user - times.system
    assert abs((after - before) - (children + own)) <= 0.05
