"""A mail server on loopback that stores every message as a file.

Prints its port, then waits for the end of its input.
"""

import sys
from pathlib import Path

from aiosmtpd.controller import Controller

directory = Path(sys.argv[1])


class Keep:
    def __init__(self):
        self.count = 0

    async def handle_DATA(self, server, session, envelope):
        self.count += 1
        unfinished = directory / f"{self.count}.part"
        unfinished.write_bytes(envelope.content)
        (directory / f"{self.count}.envelope").write_text(f"{envelope.mail_from} {' '.join(envelope.rcpt_tos)}")
        unfinished.rename(directory / f"{self.count}.eml")
        return "250 2.0.0 Ok"


class AnyPort(Controller):
    # At its start the controller connects to its configured port, which must not be 0.
    def _trigger_server(self):
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


controller = AnyPort(Keep(), hostname="127.0.0.1", port=0)
controller.start()
print(controller.port, flush=True)
sys.stdin.read()
controller.stop()
