"""The server of Microsoft's "Getting started with Winsock", step by step, on every platform.

    python winsock_server.py [PORT]     (default 27015; port 0 lets the system choose)

It accepts one client on IPv4, sends back what it receives until the client shuts its side down, and ends. Lay it beside
the C text: each numbered step is a page there. What C checks after every call is an exception here, and what C must
undo on every error path (freeaddrinfo, closesocket, WSACleanup) is undone by leaving a `with` block.
"""

import sys

import harken
from harken import AF_INET, AI_PASSIVE, IPPROTO_TCP, SHUT_WR, SOCK_STREAM

DEFAULT_PORT = "27015"
DEFAULT_BUFLEN = 512


def main(port: str = DEFAULT_PORT) -> int:
    # 0. WSAStartup(MAKEWORD(2,2), &wsaData): done by `import harken`, and WSACleanup() when Python has ended.

    # 1. Resolve the local address and port to be used by the server.
    try:
        result = harken.getaddrinfo(None, port, family=AF_INET, type=SOCK_STREAM, proto=IPPROTO_TCP, flags=AI_PASSIVE)
    except OSError as error:
        print(f"getaddrinfo failed: {error}")
        return 1

    with result:  # freeaddrinfo(result) on the way out, whatever happens
        # 2. Create a socket for the server to listen for client connections.
        try:
            listen_socket = harken.Socket(result[0].family, result[0].type, result[0].proto)
        except OSError as error:
            print(f"error at socket(): {error}")
            return 1

        # 3. Set up the TCP listening socket.
        try:
            listen_socket.bind(result[0])
        except OSError as error:
            print(f"bind failed with error: {error}")
            listen_socket.close()
            return 1

    with listen_socket:  # closesocket(ListenSocket)
        # 4. Listen. C says SOMAXCONN; without an argument harken asks for the most that the system grants.
        try:
            listen_socket.listen()
        except OSError as error:
            print(f"listen failed with error: {error}")
            return 1
        print(f"listening on port {listen_socket.getsockname()[1]}", flush=True)

        # 5. Accept a client socket.
        try:
            client_socket, _ = listen_socket.accept()
        except OSError as error:
            print(f"accept failed with error: {error}")
            return 1

    # No longer need the server socket: the block above has closed it.

    with client_socket:  # closesocket(ClientSocket)
        # 6. Receive until the peer shuts down the connection, and echo the buffer back to the sender.
        while True:
            try:
                received = client_socket.recv(DEFAULT_BUFLEN)
            except OSError as error:
                print(f"recv failed with error: {error}")
                return 1
            if not received:
                print("connection closing...")
                break
            print(f"bytes received: {len(received)}")
            try:
                client_socket.sendall(received)
            except OSError as error:
                print(f"send failed with error: {error}")
                return 1
            print(f"bytes sent: {len(received)}")

        # 7. Shut down the connection since we're done.
        try:
            client_socket.shutdown(SHUT_WR)
        except OSError as error:
            print(f"shutdown failed with error: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
