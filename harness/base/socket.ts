// SPDX-License-Identifier: Apache-2.0

/** Unix sockets as users name them: which path is meant, and why nobody can be asked there. */
import { existsSync, statSync } from "node:fs";
import { connect } from "node:net";
import { resolve } from "node:path";

/** The path of a socket that is named as one: plainly, or as a `unix:` address, which Podman, Docker and gRPC write. */
export const socketPath = (named: string): string => resolve(named.replace(/^unix:(\/\/)?/, ""));

const TCP = /^(tcp|https?):|^(\[[\da-f:]+\]|[\w.-]*):\d+$/i;

/** Why what was named cannot be a socket here, without a look at who serves it; false if it can. */
export function socketProblem(named: string): string | false {
  const path = socketPath(named);
  try {
    const found = statSync(path, { throwIfNoEntry: false });
    if (found) return !found.isSocket() && `${found.isDirectory() ? "a folder" : "a file"}, not a socket`;
    return TCP.test(named) ? "a TCP address, and the path of a Unix socket was expected" : "no such socket";
  } catch {
    return "permission denied: this user may not look into a folder above it";
  }
}

/** Why nobody can be asked on a socket; undefined when somebody takes connections. */
export function whyUnreachable(path: string): Promise<string | undefined> {
  return new Promise((done) => {
    const socket = connect(path);
    const end = (why?: string) => {
      socket.destroy();
      done(why);
    };
    // A reset may be told twice.
    socket.on("error", (error) => end(reasonOf(error, path))).once("connect", () => end());
  });
}

function reasonOf({ code, message }: NodeJS.ErrnoException, path: string): string {
  // The file of a server that was killed stays until the next one binds.
  if (code === "ECONNREFUSED") return "nobody listens there";
  if (code === "ENOENT") return "no such socket";
  if (code !== "EACCES") return message;
  const found = existsSync(path) ? statSync(path) : undefined;
  const mode =
    found && ` (it is user ${found.uid}'s, mode ${(found.mode & 0o777).toString(8).padStart(4, "0")})`;
  return `permission denied${mode ?? ""}`;
}
