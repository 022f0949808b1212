// SPDX-License-Identifier: Apache-2.0

/**
 * Becomes the user nobody, dials a socket in the folder that it was started in, and prints what it got: "an answer",
 * "a closed connection", "an open connection without an answer", or the error's name. Only root can start it.
 *
 *   cd /run/driver && bun other-user.ts driver.sock
 */
import { connect } from "node:net";

const NOBODY = 65_534;
/** A server that speaks HTTP/2 sends its settings at once. */
const PATIENCE_MS = 2_000;

const tell = (what: string): never => {
  console.log(what);
  process.exit(0);
};

process.setgroups!([]);
process.setgid!(NOBODY);
process.setuid!(NOBODY);
const socket = connect(process.argv[2]!, () =>
  socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
);
socket.on("data", () => tell("an answer"));
socket.on("error", ({ code }: NodeJS.ErrnoException) => tell(code ?? "an error"));
socket.on("close", () => tell("a closed connection"));
setTimeout(() => tell("an open connection without an answer"), PATIENCE_MS);
