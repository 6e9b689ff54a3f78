"""The same server for many clients: one call instead of steps 1 to 4, and a thread for each client.

python one_call.py [BIND ...]     (default ":27015": every address, IPv4 and IPv6)
"""

import sys
import threading

import harken


def serve(client: harken.Socket) -> None:
    with client:
        while data := client.recv(65536):
            client.sendall(data)


def accept(listener: harken.Listener) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


with harken.listen(*(sys.argv[1:] or [":27015"])) as listeners:
    for listener in listeners:
        print(f"listening on {listener}, backlog {listener.backlog}", flush=True)
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("done")
