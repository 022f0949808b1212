// SPDX-License-Identifier: Apache-2.0

/**
 * Which phase a sandbox is in. A driver's snapshot says what the platform sees, a supervisor's session whether the
 * sandbox can be used, the old phase what was asked for; these functions put the three together. They change the
 * sandbox in place and know nothing of stores or streams.
 */
import type { DriverSandbox__Output } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { DriverSandboxStatus__Output } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxStatus.ts";
import type { Sandbox__Output } from "../../proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { SandboxCondition__Output } from "../../proto/v0.0/types/openshell/v1/SandboxCondition.ts";
import type { SandboxStatus__Output } from "../../proto/v0.0/types/openshell/v1/SandboxStatus.ts";

export type Phase =
  | "Unspecified"
  | "Provisioning"
  | "Ready"
  | "Error"
  | "Deleting"
  | "Unknown"
  | "Stopping"
  | "Stopped"
  | "Starting";

/** Reasons of Ready=False that may pass; every other one, the empty one included, is final. */
const TRANSIENT = [
  "reconcilererror",
  "dependenciesnotready",
  "supervisornotconnected",
  "starting",
  "containerstarting",
  "containercreated",
  "healthcheckstarting",
  "inspectfailed",
];

const same = (one: string, other: string) => one.toLowerCase() === other;

// Reading and writing

export function phaseOf(sandbox: Sandbox__Output): Phase {
  const name = (sandbox.status?.phase ?? "SANDBOX_PHASE_UNSPECIFIED").replace("SANDBOX_PHASE_", "");
  return (name.charAt(0) + name.slice(1).toLowerCase()) as Phase;
}

export function setPhase(sandbox: Sandbox__Output, phase: Phase): void {
  sandbox.status ??= emptyStatus();
  sandbox.status.phase = `SANDBOX_PHASE_${phase.toUpperCase() as Uppercase<Phase>}`;
}

/** Sets the phase together with the Ready=False condition that explains it. */
export function setNotReady(sandbox: Sandbox__Output, phase: Phase, reason: string, message: string): void {
  setPhase(sandbox, phase);
  setReady(sandbox, "False", reason, message);
}

/** Whether the driver should be running something for a sandbox in this phase. */
export const shouldRun = (phase: Phase) =>
  ["Unspecified", "Provisioning", "Ready", "Starting", "Unknown"].includes(phase);

function emptyStatus(name = ""): SandboxStatus__Output {
  return {
    sandbox_name: name,
    agent_pod: "",
    agent_fd: "",
    sandbox_fd: "",
    conditions: [],
    phase: "SANDBOX_PHASE_UNSPECIFIED",
    current_policy_version: 0,
    main_process_instance_id: "",
  };
}

function setReady(sandbox: Sandbox__Output, status: "True" | "False", reason: string, message: string): void {
  const condition: SandboxCondition__Output = {
    type: "Ready",
    status,
    reason,
    message,
    last_transition_time: "",
  };
  sandbox.status ??= emptyStatus(sandbox.metadata?.name);
  const { conditions } = sandbox.status;
  const index = conditions.findIndex(({ type }) => type === "Ready");
  if (index < 0) conditions.push(condition);
  else conditions[index] = condition;
}

/** Records how the main process ended, or forgets it. */
function setExitCode(status: SandboxStatus__Output, exitCode: number | undefined): void {
  delete status.exit_code;
  if (exitCode !== undefined) status.exit_code = exitCode;
}

// What the platform says

/** The phase in a driver's status alone. The type `Ready` counts only in this spelling, `Suspended` in any. */
export function derivePhase(status: DriverSandboxStatus__Output | null): Phase {
  if (!status) return "Unknown";
  if (status.deleting) return "Deleting";
  if (status.conditions.some(({ type, status }) => same(type, "suspended") && same(status, "true")))
    return "Stopped";
  const ready = status.conditions.find(({ type }) => type === "Ready");
  if (!ready) return "Provisioning";
  if (same(ready.status, "true")) return "Ready";
  return same(ready.status, "false") && !TRANSIENT.includes(ready.reason.toLowerCase())
    ? "Error"
    : "Provisioning";
}

/** The container has ended, in whatever words the driver says so. */
export const confirmsStopped = ({ status }: DriverSandbox__Output) =>
  derivePhase(status) === "Stopped" || exited(status);

const exited = (status: DriverSandboxStatus__Output | null) =>
  status?.conditions.some(
    (condition) => same(condition.status, "false") && /^container(exited|stopped)$/i.test(condition.reason),
  ) ?? false;

/** A stop was accepted and goes on. */
export const confirmsStopping = ({ status }: DriverSandbox__Output) =>
  status?.conditions.some(
    ({ type, status, reason }) =>
      same(type, "suspended") && same(status, "false") && /^pod(terminating|notterminated)$/i.test(reason),
  ) ?? false;

// What follows from it

/**
 * Applies a driver's snapshot.
 * @param connected whether the sandbox's supervisor has a session
 */
export function applySnapshot(
  sandbox: Sandbox__Output,
  snapshot: DriverSandbox__Output,
  connected: boolean,
): void {
  const before = phaseOf(sandbox);
  if (before === "Error") return;

  let composed: Phase;
  if (snapshot.status) {
    composed = compose(derivePhase(snapshot.status), connected);
    sandbox.status = publicStatus(snapshot.status, sandbox);
    if (derivePhase(snapshot.status) === "Ready" && !connected) {
      setReady(sandbox, "False", "SupervisorNotConnected", "Backend ready; waiting for supervisor session");
    } else if (composed === "Ready") setConnectedCondition(sandbox);
  } else {
    composed = connected && (before === "Provisioning" || before === "Unknown") ? "Ready" : before;
    if (composed !== before) setConnectedCondition(sandbox);
  }
  setPhase(sandbox, next(before, composed, snapshot));
  sandbox.status!.sandbox_name ||= snapshot.name;
}

const compose = (backend: Phase, connected: boolean): Phase =>
  ["Error", "Deleting", "Stopped"].includes(backend) ? backend : connected ? "Ready" : "Provisioning";

/** A stop or start that was asked for is left only by what completes or breaks it. */
function next(before: Phase, composed: Phase, snapshot: DriverSandbox__Output): Phase {
  switch (before) {
    case "Stopping":
      if (composed === "Stopped" || exited(snapshot.status)) return "Stopped";
      return composed === "Error" && !confirmsStopping(snapshot) ? "Error" : "Stopping";
    case "Stopped":
      return "Stopped";
    case "Starting":
      return composed === "Ready" || composed === "Error" ? composed : "Starting";
    default:
      return composed;
  }
}

function publicStatus(status: DriverSandboxStatus__Output, sandbox: Sandbox__Output): SandboxStatus__Output {
  const result: SandboxStatus__Output = {
    ...emptyStatus(status.sandbox_name),
    agent_pod: status.instance_id,
    agent_fd: status.agent_fd,
    sandbox_fd: status.sandbox_fd,
    conditions: status.conditions.map((condition) => ({ ...condition })),
    current_policy_version: sandbox.status?.current_policy_version ?? 0,
    main_process_instance_id: sandbox.status?.main_process_instance_id ?? "",
  };
  setExitCode(result, sandbox.status?.exit_code);
  if (sandbox.spec?.resource_requirements?.gpu) explainUnschedulable(result);
  return result;
}

function explainUnschedulable(status: SandboxStatus__Output): void {
  for (const condition of status.conditions) {
    if (
      condition.type !== "Ready" ||
      !same(condition.status, "false") ||
      !same(condition.reason, "unschedulable")
    )
      continue;
    condition.message =
      "GPU sandbox could not be scheduled on the active gateway. Another GPU sandbox may already be using the available GPU, or the gateway may not currently be able to satisfy GPU placement. Please refer to documentation and use `openshell doctor` commands to inspect GPU support and gateway configuration.";
  }
}

// What the supervisor says

const setConnectedCondition = (sandbox: Sandbox__Output) =>
  setReady(sandbox, "True", "DependenciesReady", "Supervisor session connected");

/** Whether a session that opens, or closes, changes a sandbox in this phase. */
export const heedsSession = (phase: Phase, connected: boolean) =>
  connected ? !["Deleting", "Error", "Stopping", "Stopped"].includes(phase) : phase === "Ready";

export function applyConnected(sandbox: Sandbox__Output, instanceId: string): void {
  setConnectedCondition(sandbox);
  setPhase(sandbox, "Ready");
  sandbox.status!.main_process_instance_id = instanceId;
  setExitCode(sandbox.status!, undefined);
}

export function applyDisconnected(sandbox: Sandbox__Output): void {
  setNotReady(sandbox, "Provisioning", "DependenciesNotReady", "Supervisor session disconnected");
}

/** Whether a report of the main process's end is news. While starting, the known instance is the stopped one. */
export function heedsExit(sandbox: Sandbox__Output, instanceId: string): boolean {
  const phase = phaseOf(sandbox);
  if (["Deleting", "Stopping", "Stopped"].includes(phase)) return false;
  const known = sandbox.status?.main_process_instance_id ?? "";
  if (known !== "" && (phase === "Starting") === (known === instanceId)) return false;
  return sandbox.status?.exit_code === undefined;
}

/** Exit code 0 is an error too: the main process defines whether the sandbox is healthy. */
export function applyMainProcessExit(sandbox: Sandbox__Output, instanceId: string, exitCode: number): void {
  setNotReady(sandbox, "Error", "MainProcessExited", "Canonical main process exited");
  sandbox.status!.main_process_instance_id = instanceId;
  setExitCode(sandbox.status!, exitCode);
}

/** Begins a stop or a start. The instance id stays, so that a late report of its end is known as old. */
export function beginTransition(sandbox: Sandbox__Output, phase: "Stopping" | "Starting"): void {
  const verb = phase === "Stopping" ? "stop" : "start";
  setNotReady(sandbox, phase, phase, `Sandbox ${verb} requested`);
  setExitCode(sandbox.status!, undefined);
}
