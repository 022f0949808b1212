// SPDX-License-Identifier: Apache-2.0

/**
 * The smallest driver that brings sandboxes up: each is a supervisor that runs as a plain process. It isolates nothing,
 * and forgets its sandboxes when it ends. A place to start from, in any language:
 *
 *   bun run e2e -- --driver-cmd 'bun examples/process-driver.ts {socket} {endpoint} {supervisor} {state}' -t SM-
 */
import * as grpc from "@grpc/grpc-js";
import { chmodSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { computeDriver } from "../proto/contract.ts";
import type { ComputeDriverHandlers } from "../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type {
  DriverSandbox,
  DriverSandbox__Output as Asked,
} from "../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { WatchSandboxesEvent } from "../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";

const [socket = "", endpoint = "", supervisor = "", state = ""] = process.argv.slice(2);

/** A sandbox: what was asked for, its folder, and its supervisor's process while that runs. */
interface Box {
  asked: Asked;
  folder: string;
  process?: Bun.Subprocess;
}

const boxes = new Map<string, Box>();
const watchers = new Set<(event: WatchSandboxesEvent) => void>();

function snapshot({ asked, process }: Box): DriverSandbox {
  const { id, name, workspace } = asked;
  const ready = process
    ? { status: "True", reason: "SupervisorRunning" }
    : { status: "False", reason: "ContainerExited", message: "its supervisor does not run" };
  // Never what was asked for: that has the token.
  return {
    id,
    name,
    workspace,
    status: { sandbox_name: name, instance_id: id, conditions: [{ type: "Ready", ...ready }] },
  };
}

function tell(event: WatchSandboxesEvent): void {
  for (const send of watchers) send(event);
}

function start(box: Box): void {
  if (box.process) return;
  const { id, name, spec } = box.asked;
  const environment = { ...spec?.template?.environment, ...spec?.environment };
  const { command = [], tty = false } = spec ?? {};
  const child = (box.process = Bun.spawn([supervisor, "--workdir", "/sandbox"], {
    env: {
      PATH: process.env.PATH,
      ...environment,
      OPENSHELL_USER_ENVIRONMENT: JSON.stringify(environment),
      OPENSHELL_SANDBOX: name,
      OPENSHELL_SANDBOX_ID: id,
      OPENSHELL_ENDPOINT: endpoint,
      OPENSHELL_SANDBOX_TOKEN_FILE: "/token",
      ...(command.length > 0 && {
        OPENSHELL_MAIN_PROCESS_SPEC: JSON.stringify({ version: 1, command, tty }),
      }),
      OPENSHELL_FAKE_ROOT: box.folder,
      OPENSHELL_E2E_RUN: process.env.OPENSHELL_E2E_RUN,
    },
    stdout: "ignore",
    stderr: "inherit",
  }));
  tell({ sandbox: { sandbox: snapshot(box) } });
  void child.exited.then(() => {
    box.process = undefined;
    if (boxes.get(id) === box) tell({ sandbox: { sandbox: snapshot(box) } });
  });
}

async function stop({ process }: Box): Promise<void> {
  process?.kill("SIGTERM");
  const patience = setTimeout(() => process?.kill("SIGKILL"), 5_000);
  await process?.exited;
  clearTimeout(patience);
}

/** A status with which a call is refused. */
const refusal = (code: grpc.status, details: string) => Object.assign(new Error(details), { code, details });

function boxOf(id: string): Box {
  const box = boxes.get(id);
  if (!box) throw refusal(grpc.status.NOT_FOUND, `there is no sandbox ${id}`);
  return box;
}

/** Answers a unary call with what `work` returns, or refuses it with what it throws. */
const answering =
  <Request, Response>(work: (request: Request) => Response | Promise<Response>) =>
  (call: grpc.ServerUnaryCall<Request, Response>, reply: grpc.sendUnaryData<Response>): void =>
    void Promise.try(work, call.request).then((response) => reply(null, response), reply);

const handlers: ComputeDriverHandlers = {
  GetCapabilities: answering(() => ({
    driver_name: "process",
    driver_version: "0.1.0",
    default_image: "none",
    gateway_manages_lifecycle: true,
  })),
  GetGatewayListenerRequirements: answering(() => ({ requirements: [] })),
  ValidateSandboxCreate: answering(() => ({})),
  EnsureWorkspace: answering(() => ({})),
  DeleteWorkspace: answering(() => ({})),

  CreateSandbox: answering(({ sandbox: asked }) => {
    if (!asked?.id) throw refusal(grpc.status.INVALID_ARGUMENT, "a sandbox with an id was expected");
    if (boxes.has(asked.id)) throw refusal(grpc.status.ALREADY_EXISTS, `there is a sandbox ${asked.id}`);
    const box: Box = { asked, folder: join(state, asked.id) };
    mkdirSync(join(box.folder, "sandbox"), { recursive: true, mode: 0o700 });
    writeFileSync(join(box.folder, "token"), asked.spec?.sandbox_token ?? "", { mode: 0o600 });
    boxes.set(asked.id, box);
    start(box);
    return {};
  }),
  GetSandbox: answering(({ sandbox_id }) => ({ sandbox: snapshot(boxOf(sandbox_id)) })),
  ListSandboxes: answering(() => ({ sandboxes: [...boxes.values()].map(snapshot) })),
  StartSandbox: answering(({ sandbox_id }) => {
    start(boxOf(sandbox_id));
    return {};
  }),
  StopSandbox: answering(async ({ sandbox_id }) => {
    await stop(boxOf(sandbox_id));
    return {};
  }),
  DeleteSandbox: answering(async ({ sandbox_id }) => {
    const box = boxes.get(sandbox_id);
    if (!box) return { deleted: false };
    await stop(box);
    boxes.delete(sandbox_id);
    rmSync(box.folder, { recursive: true, force: true });
    tell({ deleted: { sandbox_id } });
    return { deleted: true };
  }),

  WatchSandboxes(call) {
    const send = (event: WatchSandboxesEvent) => void call.write(event);
    call.on("cancelled", () => watchers.delete(send));
    call.sendMetadata(new grpc.Metadata());
    watchers.add(send);
    for (const box of boxes.values()) send({ sandbox: { sandbox: snapshot(box) } });
  },
};

const server = new grpc.Server();
server.addService(computeDriver().ComputeDriver.service, { ...handlers });
chmodSync(dirname(socket), 0o700);
process.umask(0o177);
server.bindAsync(`unix:${socket}`, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  process.umask(0o077);
});
for (const signal of ["SIGTERM", "SIGINT"] as const)
  process.on(signal, async () => {
    server.forceShutdown();
    await Promise.all([...boxes.values()].map(stop));
    process.exit(0);
  });
