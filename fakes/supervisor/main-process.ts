// SPDX-License-Identifier: Apache-2.0

/**
 * The main process, whose end is the end of the sandbox, and the report of it.
 */
import { constants } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { unary } from "../../proto/contract.ts";
import { describe, type Gateway } from "./gateway.ts";
import type { Log } from "./log.ts";
import type { Ended, Processes } from "./processes.ts";
import type { Settings } from "./settings.ts";

const REPORT_RETRY = { first: 250, max: 2_000 };
const REPORT_DEADLINE = 5_000;

/**
 * Starts the main process. Its input stays open and its output goes nowhere, as long as nobody attaches to it.
 * @returns a promise of its exit code, 128 + n when signal n ends it.
 * @throws when it cannot be started.
 */
export async function startMain(
  { main }: Settings,
  processes: Processes,
  env: Record<string, string>,
): Promise<{ exit: Promise<number> }> {
  const launch = { argv: main.command, env };
  if (main.tty) {
    const { ended } = processes.onTerminal(launch, { cols: 80, rows: 24 }, () => {});
    return { exit: ended.then(exitCode) };
  }
  const { stdout, stderr, ended } = await processes.piped(launch);
  stdout.resume();
  stderr.resume();
  return { exit: ended.then(exitCode) };
}

const exitCode = ({ code, signal }: Ended) => code ?? 128 + (signal ? constants.signals[signal] : 0);

/** Reports the exit of the main process again and again until the gateway has taken it. */
export async function reportMainExit(
  gateway: Gateway,
  { sandbox_id, instance_id, exit_code }: { sandbox_id: string; instance_id: string; exit_code: number },
  log: Log,
): Promise<void> {
  for (let delay = REPORT_RETRY.first; ; delay = Math.min(delay * 2, REPORT_RETRY.max)) {
    try {
      await unary(
        gateway.client,
        gateway.client.reportMainProcessExit,
        { sandbox_id, instance_id, exit_code },
        { deadlineMs: REPORT_DEADLINE, metadata: gateway.metadata() },
      );
      return;
    } catch (error) {
      log.write("warn", `the exit of the main process is not reported yet: ${describe(error)}`);
      await sleep(delay);
    }
  }
}
