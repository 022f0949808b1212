// SPDX-License-Identifier: Apache-2.0

/** `keep FOLDER`: the keeper of one run, started by `startKeeper`; ends when the last connection to it closes. */
import { type Command, EXIT } from "../harness.ts";
import { Run } from "../keeper/run.ts";
import { Keeper, serveControl } from "../keeper/keeper.ts";

/** Nobody came: the process that started us died before it could connect. */
const LONELY_MS = 4_000;

export const command: Command = async (settings, [folder = ""]) => {
  const run = Run.open(folder);
  const opening = Promise.withResolvers<Keeper>();
  // Each caller gets a failure as its answer; here it only must not end the process.
  opening.promise.catch(() => {});
  const idle = Promise.withResolvers<void>();
  const lonely = setTimeout(idle.resolve, LONELY_MS);
  await serveControl(run, opening.promise, {
    onConnection: () => clearTimeout(lonely),
    onIdle: idle.resolve,
  });
  Keeper.open(run, settings).then(opening.resolve, opening.reject);
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => idle.resolve());
  await idle.promise;
  await (await opening.promise.catch(() => undefined))?.close();
  run.remove();
  return EXIT.ok;
};
