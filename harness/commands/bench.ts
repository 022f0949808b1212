// SPDX-License-Identifier: Apache-2.0

/** `bench`: what the harness itself costs, with the programs that the settings name. Prints medians; times nothing else. */
import { ROOT } from "../base/root.ts";
import * as grpc from "@grpc/grpc-js";

import { asEnvironment, type Settings } from "../base/settings.ts";
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { interruptible } from "../base/waiting.ts";
import { openClient } from "../client/gateway.ts";
import { RunningStack } from "../running-stack.ts";
import { withKeeper } from "../runtime/connection.ts";
import { BUN } from "../base/environment.ts";
import { endingWithUs } from "../base/parent.ts";
import { describeParts } from "../runtime/places.ts";
import { residentMegabytes } from "../runtime/run.ts";
import { type CallError, computeDriver, streaming, unary } from "../../proto/contract.ts";
import type { ComputeDriverClient } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";

const ROUNDS = 10;
const CALLS = 400;

export const command: Command = (settings) => interruptible((stop) => bench(settings, stop));

async function bench(settings: Settings, stop: AbortSignal): Promise<number> {
  const starts: number[] = [];
  const stops: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    stop.throwIfAborted();
    const started = performance.now();
    let answered = started;
    await withKeeper(settings, async (keeper) => {
      const stack = new RunningStack(keeper, await keeper.call("startStack", {}));
      await stack.gateway.health();
      answered = performance.now();
      stack.gateway.close();
    });
    starts.push(answered - started);
    stops.push(performance.now() - answered);
  }

  await withKeeper(settings, async (keeper) => {
    const stack = new RunningStack(keeper, await keeper.call("startStack", {}));
    const { parts } = await keeper.call("hello");
    console.log(`${describeParts(parts)}\n`);
    report("start: no process to the first RPC answered", starts);
    report("stop: everything gone", stops);
    await benchTap(stack);
    await benchClient(stack, stop);
    console.log(row("memory of keeper and tap", `${residentMegabytes(stack.info.pids.keeper)} MB`));
    stack.gateway.close();
  });
  await benchProcesses(settings, stop);
  return EXIT.ok;
}

const row = (what: string, value: string): string => `${what.padEnd(56)} ${value.padStart(12)}`;

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

function report(what: string, values: number[], digits = 0): void {
  const [least, most] = [Math.min(...values), Math.max(...values)].map((value) => value.toFixed(digits));
  console.log(
    `${row(what, `${median(values).toFixed(digits)} ms`)}   (${least}..${most}, ${values.length} times)`,
  );
}

/** The same call straight to the driver and through the tap, in turns, so that both meet the same machine. */
async function benchTap({ info }: RunningStack): Promise<void> {
  const dial = (socket: string) =>
    new (computeDriver().ComputeDriver)(`unix:${socket}`, grpc.credentials.createInsecure());
  const [direct, tapped] = [dial(info.driverSocket), dial(info.gatewaySocket)];
  const timed = async (client: ComputeDriverClient) => {
    const started = performance.now();
    await unary(client, client.GetCapabilities, {}, { deadlineMs: 5_000 });
    return performance.now() - started;
  };
  await Promise.all([timed(direct), timed(tapped)]);
  const cost: number[] = [];
  for (let call = 0; call < 2 * CALLS; call++) cost.push(-(await timed(direct)) + (await timed(tapped)));
  report(`tap: a call through it less one without, the first ${CALLS}`, cost.slice(0, CALLS), 2);
  report(`the same, the next ${CALLS}`, cost.slice(CALLS), 2);
  direct.close();
  tapped.close();
}

/** Create, Ready, exec, delete: with our client, and with the same RPCs in a bare script, in turns. */
async function benchClient(stack: RunningStack, stop: AbortSignal): Promise<void> {
  const ours: number[] = [];
  const bare: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    stop.throwIfAborted();
    const started = performance.now();
    const sandbox = await stack.gateway.readySandbox();
    await sandbox.exec(["true"]);
    await sandbox.delete();
    const between = performance.now();
    await bareLifecycle(stack);
    ours.push(between - started);
    bare.push(performance.now() - between);
  }
  report("client: create, Ready, exec, delete", ours);
  report("the same in a bare script", bare);
  console.log(row("client over bare script", `${(median(ours) / median(bare)).toFixed(2)} x`));
}

async function bareLifecycle({ info }: RunningStack): Promise<void> {
  const client = openClient(info);
  const options = { deadlineMs: 60_000 };
  const spec = { command: ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait; done"] };
  const { sandbox } = await unary(client, client.CreateSandbox, { spec }, options);
  const { id = "", name = "" } = sandbox?.metadata ?? {};
  const until = performance.now() + options.deadlineMs;
  const deadline = { deadline: Date.now() + options.deadlineMs };
  for await (const event of streaming(client.WatchSandbox({ id, follow_status: true }, deadline))) {
    if (event.sandbox?.status?.phase === "SANDBOX_PHASE_READY") break;
  }
  for await (const event of streaming(client.ExecSandbox({ sandbox_id: id, command: ["true"] }, deadline))) {
    if (event.exit) break;
  }
  await unary(client, client.DeleteSandbox, { name }, options);
  const isGone = () =>
    unary(client, client.GetSandbox, { name }, options).then(
      () => false,
      ({ code }: CallError) => code === grpc.status.NOT_FOUND,
    );
  while (!(await isGone()) && performance.now() < until) await Bun.sleep(2);
  client.close();
}

/** Whole commands, as a user runs them. @throws HarnessError when one fails: its time says nothing. */
async function benchProcesses(settings: Settings, stop: AbortSignal): Promise<void> {
  const spawn = (argv: string[], stdout: "ignore" | "pipe" = "ignore") =>
    Bun.spawn([...BUN, ...argv], {
      cwd: ROOT,
      // What flags said, too.
      env: { ...process.env, ...asEnvironment(settings), ...endingWithUs() },
      stdout,
      stderr: "ignore",
      signal: stop,
      killSignal: "SIGTERM",
    });
  const timed = async (argv: string[]) => {
    const started = performance.now();
    const child = spawn(argv);
    await child.exited;
    stop.throwIfAborted();
    if (child.exitCode !== 0)
      throw new HarnessError(`bun ${argv.join(" ")}: it ended with ${child.exitCode}`);
    return performance.now() - started;
  };
  const overhead: number[] = [];
  for (let round = 0; round < ROUNDS; round++)
    overhead.push(await timed(["harness.ts", "with", "--", "true"]));
  report("with -- true, whole", overhead);

  const kept = spawn(["harness.ts", "up"], "pipe");
  try {
    for await (const chunk of kept.stdout as unknown as AsyncIterable<Uint8Array>) {
      if (Buffer.from(chunk).includes("Ctrl-C")) break;
    }
    const attached: number[] = [];
    const smoke = ["test", "scenarios/external-podman/smoke.test.ts"];
    for (let round = 0; round < 5; round++) attached.push(await timed(smoke));
    report("bun test of the smoke file, attached to a kept stack", attached);
  } finally {
    kept.kill("SIGTERM");
    await kept.exited;
  }
  for (const suite of ["external-podman", "disruption"])
    report(`the suite ${suite}`, [await timed(["harness.ts", "test", suite])]);
}
