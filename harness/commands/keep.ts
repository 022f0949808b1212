// SPDX-License-Identifier: Apache-2.0

/** `keep FOLDER PID`: the keeper of one run, started by process PID; ends when the last connection to it closes. */
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { isAlive } from "../base/system.ts";
import { watchMemory } from "../runtime/memory.ts";
import { findParts } from "../runtime/places.ts";
import { Run } from "../runtime/run.ts";
import { serveControl } from "../runtime/control.ts";
import { Keeper } from "../runtime/keeper.ts";

/** How often it is looked whether the process that started us is there, until it has connected, in milliseconds. */
const LOOK_MS = 100;
/** After so long it will not come any more: a process that nobody collected looks alive. In milliseconds. */
const LONELY_MS = 10_000;

export const command: Command = async (settings, [folder = "", starter = ""]) => {
  if (!starter)
    throw new HarnessError(
      "keep: the harness itself starts it, for a run of its own. `up` keeps a stack for you",
    );
  const run = Run.open(folder);
  const { engine, supervisor } = findParts(settings);
  watchMemory({ as: "keeper", folder: run.folder, inContainers: engine.real && !supervisor.real });
  const opening = Promise.withResolvers<Keeper>();
  // Each caller gets a failure as its answer; here it only must not end the process.
  opening.promise.catch(() => {});
  const idle = Promise.withResolvers<void>();
  const begun = performance.now();
  const lonely = setInterval(() => {
    if (!isAlive(Number(starter)) || performance.now() - begun > LONELY_MS) idle.resolve();
  }, LOOK_MS);
  await serveControl(run, opening.promise, {
    onConnection: () => clearInterval(lonely),
    onIdle: idle.resolve,
  });
  Keeper.open(run, settings).then(opening.resolve, opening.reject);
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => idle.resolve());
  await idle.promise;
  const keeper = await opening.promise.catch(() => undefined);
  if (keeper) await keeper.close();
  else run.remove();
  return EXIT.ok;
};
