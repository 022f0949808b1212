// SPDX-License-Identifier: Apache-2.0

/** The service's life: take over what is on the root, listen, serve until a signal or until nobody asked for long. */
import { lstatSync, renameSync, rmSync, unlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { Api } from "./api.ts";
import type { Settings } from "./settings.ts";
import { State } from "./state.ts";

const MAX_IMAGE_BYTES = 16 * 2 ** 30;

export async function serve({ root, socket, idleSeconds }: Settings): Promise<void> {
  // Everything below the root is the engine's alone; a container's process gets the usual umask back.
  process.umask(0o077);
  const api = new Api(new State(root));
  await api.adopt();
  if (lstatSync(socket, { throwIfNoEntry: false })?.isSocket()) unlinkSync(socket);
  // A stop or an event stream may be silent for longer than Bun's 10 s; the types know this only for TCP.
  const patient: object = { idleTimeout: 0 };
  // Renamed once it listens: whoever sees the socket can connect to it.
  const bound = join(dirname(socket), `.${process.pid}`);
  let busy = 0;
  let lastRequest = performance.now();
  const server = Bun.serve({
    unix: bound,
    ...patient,
    maxRequestBodySize: MAX_IMAGE_BYTES,
    async fetch(request) {
      busy++;
      const response = await api.answer(request);
      busy--;
      lastRequest = performance.now();
      return response;
    },
  });
  renameSync(bound, socket);
  const end = (): void => {
    void server.stop(true);
    rmSync(socket, { force: true });
    process.exit(0);
  };
  process.on("SIGTERM", end);
  process.on("SIGINT", end);
  const isIdle = (): boolean => busy === 0 && performance.now() - lastRequest > idleSeconds * 1000;
  if (idleSeconds > 0) setInterval(() => isIdle() && end(), 200);
}
