"""A ``/proc`` and ``/sys`` of one's own."""

from chronostat.machine.linux import Linux

TICK_MS = 10.0  # USER_HZ is 100 on every Linux that torch runs on
CPU_LINE = "cpu{n} {user} 0 0 {idle} 0 0 0 {steal} 0 0\n"


class FakeLinux(Linux):
    """Files below a temporary folder."""

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def cpus_did(self, *ticks):
        """User, idle and stolen ticks of each CPU."""
        lines = [CPU_LINE.format(n=n, user=user, idle=idle, steal=steal) for n, (user, idle, steal) in enumerate(ticks)]
        self.write("proc/stat", "cpu  9 9 9 9\n" + "".join(lines) + "intr 1 2 3\n")

    def thread_waited(self, ns, thread="self"):
        folder = "proc/thread-self" if thread == "self" else f"proc/self/task/{thread}"
        self.write(f"{folder}/schedstat", f"123456 {ns} 7\n")
