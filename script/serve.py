"""Start the real Cog server on this machine, without Docker, with a form for the browser, and run it until Ctrl-C.

The model is the small embedded one unless COG_WEIGHTS=PATH or PASTEL_MODEL=NAME is set.
"""

import argparse
import json
import signal
import sys

from script.client import SETUP_SECONDS, show_log
from script.cog_server import CogServer, ServerError
from script.form_server import form_for

PORT = 5000
"""The port of a Cog container, so that examples work with both."""


def example(url: str) -> str:
    """Return a shell command that draws a picture on this server and saves it as picture.webp."""
    inputs = {"prompt": "a pink sun over the sea", "seed": 5, "output_format": "webp"}
    return "\n".join(
        (
            f'curl -s {url}/predictions -H "Content-Type: application/json" \\',
            f"    -d '{json.dumps({'input': inputs})}' |",
            "    grep -o 'base64,[^\"]*' | head -n 1 | cut -d, -f2 | base64 -d > picture.webp",
        )
    )


def serve(port: int) -> None:
    """Run the server until it ends by itself. Raises ServerError, and KeyboardInterrupt on Ctrl-C or SIGTERM."""
    print("Starting the Cog server. Imports and the model take about ten seconds ...", file=sys.stderr)
    with CogServer({}, show_log, port) as server:
        try:
            server.wait_until_ready(SETUP_SECONDS)
            url = f"http://{server.host}:{server.port}"
            with form_for(server, port + 1) as form:
                print(f"The server is ready at {url}. Ctrl-C stops it.\n")
                print(f"Draw pictures in your browser:\n\n    {form}\n")
                print(f"Or draw one from another terminal:\n\n{example(url)}\n")
                print(f"The inputs are explained in docs/inputs.md and described by {url}/openapi.json.", flush=True)
                server.process.wait()
        except KeyboardInterrupt:
            print("\nStopping; a picture that is being drawn is finished first ...", file=sys.stderr)
            if server.stop() != 0:
                raise ServerError(server.end()) from None
            raise
        raise ServerError(f"the server ended with exit code {server.process.returncode}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/serve", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help="port on this machine (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(options.port)
    except ServerError as error:
        print(f"script/serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("script/serve: stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
