import os
import pty
import time

from sprfast.system.signals import stop_signals


def test_a_terminal_that_is_gone_ends_a_run_in_order():
    child, terminal = pty.fork()
    if not child:
        try:
            with stop_signals() as stop:
                os.write(1, b"ready")
                until = time.monotonic() + 60
                while not stop.signal and time.monotonic() < until:
                    time.sleep(0.001)
                for descriptor in (1, 2):
                    os.write(descriptor, b"what is said at the end")
            os._exit(stop.exit_code)
        finally:
            os._exit(99)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
