// SPDX-License-Identifier: Apache-2.0

/**
 * A supervisor from its first connection to its end.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { Gateway } from "./gateway.ts";
import { Log } from "./log.ts";
import { reportMainExit, startMain } from "./main-process.ts";
import { Processes } from "./processes.ts";
import { holdSession } from "./session.ts";
import type { Settings } from "./settings.ts";
import { sshServer } from "./ssh.ts";
import { findUser, mainEnvironment } from "./user.ts";

/** Between SIGTERM and SIGKILL when the supervisor stops, in milliseconds. */
const STOP_GRACE = 500;
/** What clients that are attached to the main process may take to leave after its end, in milliseconds. */
const LEAVE_MS = 1_000;

/**
 * Runs until the main process ends, and then exits with its code, or until SIGTERM or SIGINT, and then exits 0. The real
 * program exits with the main process's code there too, once that process is gone.
 * @param onSignal takes what a signal is to do from now on.
 */
export async function run(settings: Settings, onSignal: (end: () => void) => void): Promise<number> {
  const stopped = new AbortController();
  let signalled = false;
  const stopping = new Promise<number>((resolve) => onSignal(() => resolve(0)));
  void stopping.then(() => (signalled = true));
  const log = new Log(settings.sandboxId, settings.logLevel);
  const gateway = new Gateway(settings);
  const processes = new Processes(settings, findUser(settings, log));
  const hello = { sandbox_id: settings.sandboxId, instance_id: crypto.randomUUID() };

  const untilMainEnded = async (): Promise<number> => {
    log.write("debug", `connecting to ${settings.endpoint}`);
    await gateway.connected(log, stopped.signal);
    log.pushTo(gateway);
    const { exit, session: main } = await startMain(
      settings,
      processes,
      mainEnvironment(settings, processes.user),
    );
    log.write("info", "main process started", {
      command: settings.main.command[0]!,
      tty: String(settings.main.tty),
    });
    let ended = false;
    void exit.then(() => (ended = true));
    // A sandbox whose main process is over already never becomes Ready.
    const server = sshServer({ settings, processes, main, log });
    if (!ended) void holdSession({ gateway, hello, server, log, stopped: stopped.signal });
    const exit_code = await exit;
    // Not a failure of the main process: a gateway that is shutting down itself would take it for one.
    if (signalled) return 0;
    log.write("info", "main process ended", { exit_code: String(exit_code) });
    log.flush();
    stopped.abort();
    await reportMainExit(gateway, { ...hello, exit_code }, log);
    // Who is attached is to see the end, too.
    await Promise.race([main.abandoned(), sleep(LEAVE_MS, undefined, { ref: false })]);
    return exit_code;
  };

  try {
    return await Promise.race([untilMainEnded(), stopping]);
  } finally {
    await processes.endAll(STOP_GRACE);
    stopped.abort();
    gateway.client.close();
  }
}
