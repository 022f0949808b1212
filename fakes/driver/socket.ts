// SPDX-License-Identifier: Apache-2.0

/** The driver's socket: its private place, and whose it is. */
import { chmodSync, lstatSync, mkdirSync, unlinkSync } from "node:fs";
import { dirname } from "node:path";
import { messageOf } from "./podman.ts";
import { StartError } from "./settings.ts";

/** The longest path of a Unix socket, in bytes. */
const MAX_PATH = process.platform === "linux" ? 107 : 103;

/** Makes a private place for the socket. @throws StartError if somebody else's file or folder is there. */
export function prepareSocket(path: string): void {
  const parent = dirname(path);
  const uid = process.geteuid?.();
  if (Buffer.byteLength(path) > MAX_PATH) {
    throw new StartError(
      `bind driver socket ${path}: path must be shorter than SUN_LEN (${MAX_PATH + 1} bytes)`,
    );
  }
  try {
    mkdirSync(parent, { recursive: true });
  } catch (error) {
    throw new StartError(`create socket directory ${parent}: ${messageOf(error)}`);
  }
  const folder = lstatSync(parent);
  if (!folder.isDirectory()) {
    throw new StartError(`driver socket parent '${parent}' must be a directory, not a symlink`);
  }
  if (folder.uid !== uid) {
    throw new StartError(`driver socket parent '${parent}' is owned by uid ${folder.uid}, expected ${uid}`);
  }
  chmodSync(parent, 0o700);
  const there = lstatSync(path, { throwIfNoEntry: false });
  if (!there) return;
  if (!there.isSocket() || there.uid !== uid) {
    throw new StartError(`driver socket path '${path}' exists but is not an owned Unix socket`);
  }
  unlinkSync(path);
}

/** Tells a file from another one that took its place, which may have its inode number. */
export function fileAt(path: string): string | null {
  const file = lstatSync(path, { throwIfNoEntry: false });
  return file ? `${file.ino} ${file.birthtimeMs}` : null;
}
