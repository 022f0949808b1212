// SPDX-License-Identifier: Apache-2.0

/** `bench`: what the harness itself costs, with the programs that the settings name. Prints medians; times nothing else. */
import * as grpc from "@grpc/grpc-js";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Command, EXIT, openClient, RunningStack, startKeeper } from "../harness.ts";
import { describeParts } from "../keeper/places.ts";
import { Run } from "../keeper/run.ts";
import { computeDriver, streaming, unary } from "../proto/contract.ts";
import type { ComputeDriverClient } from "../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";

const ROOT = join(import.meta.dir, "..");
const ROUNDS = 10;
const CALLS = 400;

export const command: Command = async (settings) => {
  const starts: number[] = [];
  const stops: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const started = performance.now();
    const keeper = await startKeeper(Run.create(settings), settings);
    const stack = new RunningStack(keeper, await keeper.call("startStack", {}));
    await stack.gateway.health();
    starts.push(performance.now() - started);
    const stopping = performance.now();
    stack.gateway.close();
    await keeper.call("close");
    keeper.close();
    stops.push(performance.now() - stopping);
  }

  const keeper = await startKeeper(Run.create(settings), settings);
  const stack = new RunningStack(keeper, await keeper.call("startStack", {}));
  const { parts } = await keeper.call("hello");
  console.log(`${describeParts(parts)}\n`);
  report("start: no process to the first RPC answered", starts);
  report("stop: everything gone", stops);
  await benchTap(stack);
  await benchClient(stack);
  console.log(row("memory of keeper and tap", `${residentMegabytes(stack.info.pids.keeper)} MB`));
  stack.gateway.close();
  await keeper.call("close");
  keeper.close();
  await benchProcesses();
  return EXIT.ok;
};

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
  for (let warm = 0; warm < 50; warm++) await Promise.all([timed(direct), timed(tapped)]);
  const cost: number[] = [];
  for (let call = 0; call < CALLS; call++) cost.push(-(await timed(direct)) + (await timed(tapped)));
  report("tap: a call through it, less the same call without", cost, 2);
  direct.close();
  tapped.close();
}

/** Create, Ready, exec, delete: with our client, and with the same RPCs in a bare script, in turns. */
async function benchClient(stack: RunningStack): Promise<void> {
  const ours: number[] = [];
  const bare: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
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
  for await (const event of streaming(client.WatchSandbox({ id, follow_status: true }))) {
    if (event.sandbox?.status?.phase === "SANDBOX_PHASE_READY") break;
  }
  for await (const event of streaming(client.ExecSandbox({ sandbox_id: id, command: ["true"] }))) {
    if (event.exit) break;
  }
  await unary(client, client.DeleteSandbox, { name }, options);
  const isThere = () =>
    unary(client, client.GetSandbox, { name }, options).then(
      () => true,
      () => false,
    );
  while (await isThere()) await Bun.sleep(2);
  client.close();
}

/** Whole commands, as a user runs them. */
async function benchProcesses(): Promise<void> {
  const timed = async (argv: string[]) => {
    const started = performance.now();
    const child = Bun.spawn([process.execPath, ...argv], { cwd: ROOT, stdout: "ignore", stderr: "ignore" });
    if ((await child.exited) !== 0) console.log(`  ${argv.join(" ")} failed with ${child.exitCode}`);
    return performance.now() - started;
  };
  const overhead: number[] = [];
  for (let round = 0; round < ROUNDS; round++)
    overhead.push(await timed(["harness.ts", "with", "--", "true"]));
  report("with -- true, whole", overhead);

  const kept = Bun.spawn([process.execPath, "harness.ts", "up"], {
    cwd: ROOT,
    stdout: "pipe",
    stderr: "ignore",
  });
  for await (const chunk of kept.stdout as unknown as AsyncIterable<Uint8Array>) {
    if (Buffer.from(chunk).includes("Ctrl-C")) break;
  }
  const attached: number[] = [];
  const smoke = ["test", "scenarios/external-podman/smoke.test.ts"];
  for (let round = 0; round < 5; round++) attached.push(await timed(smoke));
  report("bun test of the smoke file, attached to a kept stack", attached);
  kept.kill("SIGTERM");
  await kept.exited;
  report("the whole suite external-podman", [await timed(["harness.ts", "test", "external-podman"])]);
}

function residentMegabytes(pid: number): number {
  const status = `/proc/${pid}/status`;
  const kilobytes = existsSync(status)
    ? /VmRSS:\s+(\d+)/.exec(readFileSync(status, "utf8"))?.[1]
    : Bun.spawnSync(["ps", "-o", "rss=", "-p", String(pid)])
        .stdout.toString()
        .trim();
  return Math.round(Number(kilobytes) / 1024);
}
