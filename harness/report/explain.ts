// SPDX-License-Identifier: Apache-2.0

/**
 * Which process a failure points to, in one sentence, with the lines that show it and what to do next.
 *
 * Each clue knows one way in which runs fail, and reads it from what was recorded. They are tried from the most certain
 * to the vaguest; where none speaks, the explanation says so instead of guessing.
 */
import {
  type CallRecord,
  type Mark,
  type ProcessSpan,
  type ScenarioResult,
  type Verdict,
  isRed,
} from "./model.ts";
import { withoutSpans } from "../base/readable.ts";
import { clipped, offset, took } from "../base/text.ts";
import { markWords } from "./mark-words.ts";

/** Who a failure points to. `harness` is also the machine, and the settings of the run. */
export type Culprit = "gateway" | "driver" | "engine" | "supervisor" | "harness" | "unclear";

export interface Explanation {
  culprit: Culprit;
  /** What that process did: "The driver answered StopSandbox with INTERNAL". */
  sentence: string;
  /** At most three lines that show it. */
  lines: string[];
  /** What to do next. */
  advice: string;
}

/** What was recorded beside a scenario. A whole `Results` is one. */
export interface Recorded {
  /** All of the run: a sandbox that none of them has is one whose creation failed. */
  scenarios?: ScenarioResult[];
  calls: CallRecord[];
  processes?: ProcessSpan[];
  marks?: Mark[];
}

/** A scenario with what belongs to it alone. */
export interface Case {
  scenario: ScenarioResult;
  /** What the scenario said, without the evidence that follows. */
  message: string;
  /** Until it failed, and as they stood then. */
  calls: CallRecord[];
  /** After that, from cleaning up. */
  cleaning: CallRecord[];
  processes: ProcessSpan[];
  /** What was done to its stack on purpose. */
  marks: Mark[];
}

/** What a scenario said when it failed, without the evidence behind it, which the report shows apart. */
export const messageOf = ({ reason }: Pick<ScenarioResult, "reason">): string =>
  reason.split("\nRPCs between gateway and driver:", 1)[0]!.trim();

/** What belongs to a scenario: on its stack, in its time, about its sandboxes or about none. */
export function caseOf(scenario: ScenarioResult, recorded: Recorded): Case {
  const { stack, at, ms, sandboxes } = scenario;
  const message = messageOf(scenario);
  const inTime = (from: number, to = Infinity) => from <= at + ms && to >= at;
  const taken = (sandbox: string) => recorded.scenarios?.some((other) => other.sandboxes.includes(sandbox));
  const wasAlone = !recorded.scenarios?.some(
    (other) =>
      other.id !== scenario.id && other.stack === stack && other.at < at + ms && other.at + other.ms > at,
  );
  // Whose creation failed never learns the sandbox's id; beside others only its message tells that it was its own.
  const isUnclaimed = ({ sandbox, status, details }: CallRecord) =>
    status !== "OK" &&
    taken(sandbox) === false &&
    (wasAlone || (details !== "" && message.includes(details)));
  const mine = (call: CallRecord) =>
    call.sandbox === "" || sandboxes.includes(call.sandbox) || isUnclaimed(call);
  const ours = <Of extends { stack: number }>(items: Of[] = []) =>
    items.filter((item) => item.stack === stack);
  const calls = stack
    ? ours(recorded.calls).filter((call) => inTime(call.at, call.at + (call.ms ?? Infinity)) && mine(call))
    : [];
  const failed = at + (scenario.failedMs ?? Infinity);
  // A fault of one method is the doing of one scenario, and does nothing to others that make no such call.
  const concerns = ({ what }: Mark) => {
    const [, method] = /^fault (\w+):/.exec(what) ?? [];
    const isMade = calls.some((call) => call.method === method && (call.sandbox !== "" || isWatch(call)));
    return wasAlone || !method || isMade;
  };
  const isIts = (mark: Mark) => (mark.standing || inTime(mark.at, mark.at)) && concerns(mark);
  return {
    scenario,
    message,
    calls: calls.filter((call) => call.at <= failed).map((call) => asOf(failed, call)),
    cleaning: calls.filter((call) => call.at > failed),
    processes: (recorded.processes ?? []).filter(
      (process) =>
        (process.stack === stack || process.stack === 0) &&
        inTime(process.at, process.at + (process.ms ?? Infinity)),
    ),
    marks: stack ? ours(recorded.marks).filter(isIts) : [],
  };
}

/** A call as it stood then: what was still open ended later, when everything was taken down. */
function asOf(time: number, call: CallRecord): CallRecord {
  const { ms, ...open } = call;
  return ms !== undefined && call.at + ms > time ? { ...open, status: "", details: "" } : call;
}

/** The process that a scenario's failure points to. For a scenario that is not bad news, its reason. */
export function explain(scenario: ScenarioResult, recorded: Recorded): Explanation {
  return explainCase(caseOf(scenario, recorded));
}

export function explainCase(one: Case): Explanation {
  if (!isRed(one.scenario.verdict)) return quiet(one);
  for (const clue of CLUES) {
    const found = clue(one);
    if (found)
      return {
        ...found,
        advice: `${flakiness(one.scenario)}${found.advice}`,
        lines: found.lines
          .filter(Boolean)
          .slice(0, 3)
          .map((line) => clipped(line)),
      };
  }
  return nothingFound(one);
}

/** Of a scenario that also passed in the same run. */
function flakiness({ times }: ScenarioResult): string {
  if (!times || times.failed === times.run) return "";
  return `It is flaky: it passed ${times.run - times.failed} of ${times.run} times, so look for what depends on time. `;
}

/** How to run it again, alone. */
export function again({ suite, id }: Pick<ScenarioResult, "suite" | "id">): string {
  if (suite === "driver-contract") return `bun harness.ts check --only ${id}`;
  return suite === "external-podman" ? `bun run e2e -- -t ${id}` : `bun harness.ts test ${suite} -t ${id}`;
}

/** One call in one line: "+1.20 s StopSandbox → INTERNAL after 3 ms: no such container". */
export function callLine(call: CallRecord, since: number): string {
  const outcome = call.status
    ? `${call.status} after ${took(call.ms ?? 0)}`
    : isWatch(call)
      ? "open"
      : "no answer";
  const details = detailsOf(call);
  return `${offset(call.at - since)}  ${call.method} → ${outcome}${details && `: ${details}`}`;
}

/** What a call's end said beside its status: some servers send "OK" along with an OK. */
export const detailsOf = ({ status, details }: CallRecord): string => (details === status ? "" : details);

export const isWatch = ({ method }: CallRecord): boolean => method === "WatchSandboxes";

// Clues

type Clue = (one: Case) => Explanation | undefined;

const cutOff: Clue = ({ scenario }) =>
  scenario.verdict === "cut"
    ? {
        culprit: "harness",
        sentence: "The run ended while this scenario was under way: it was killed, or its time was over.",
        lines: [],
        advice: "Nothing is known of the requirement. Run it again; if it is cut off again, it hangs",
      }
    : undefined;

/** A setting is refused in one line, which names it and what is expected; or what is wrong ends with what to set. */
const wrongSetting: Clue = ({ scenario, message }) => {
  if (scenario.verdict !== "error") return undefined;
  const [toSet] = /\bSet OPENSHELL_\w+ to [^\n]*/.exec(message) ?? [];
  if (!toSet && !/^(?:--[a-z][\w-]*|OPENSHELL_\w+): /.test(message)) return undefined;
  return {
    culprit: "harness",
    sentence: `A setting is wrong: ${clipped(message, 400)}`,
    lines: [],
    advice: `${toSet ?? "Correct it"}; \`bun harness.ts help\` lists all settings, \`bun harness.ts doctor\` what they come to`,
  };
};

const listedWrongly: Clue = ({ message }) =>
  message.startsWith("it is listed as known to fail")
    ? {
        culprit: "harness",
        sentence: "It passes, though scenarios/known-failing.toml lists it as known to fail.",
        lines: [clipped(message)],
        advice: "Good news: take the entry out of scenarios/known-failing.toml",
      }
    : undefined;

/** A deadline passed on a machine that had no time for anybody: the harness says so beside it. */
const overloaded: Clue = ({ message }) => {
  const [line = "", load] =
    /^.*not within \d+ ms \((the machine is overloaded: [^)]*)\)/m.exec(message) ?? [];
  if (!load) return undefined;
  return {
    culprit: "harness",
    sentence: `${load[0]!.toUpperCase()}${load.slice(1)}. Nothing is known of the requirement.`,
    lines: [line],
    advice: "Run it again when the machine has time, or fewer at once: `OPENSHELL_E2E_PARALLEL=1`",
  };
};

/** A program that cannot even be started: the setting that names it is wrong. */
const notStarted: Clue = ({ message }) => {
  const [, who, why = ""] = /^(gateway|driver|engine): cannot be started: ([^\n]*)/m.exec(message) ?? [];
  if (!who) return undefined;
  const missing = /ENOENT/.test(why) ? "there is no such program" : why;
  return {
    culprit: "harness",
    sentence: `The ${who} cannot be started: ${missing}.`,
    lines: message.split("\n").filter((line) => /^\s*command: /.test(line)),
    advice: `Correct the setting that names it (\`bun harness.ts doctor\` shows what stands in each place); the command has the path that was tried`,
  };
};

/** A process never answered, or ended before it did: the harness says so in `name: what: why`. */
const neverCameUp: Clue = ({ scenario, message }) => {
  const [line, culprit, what, why] =
    /^(gateway|driver|engine): ([^\n]*): (it ended with [^\n]*|not within \d+ ms)/m.exec(message) ?? [];
  if (!line || !what || !why) return undefined;
  const who = culprit as "gateway" | "driver" | "engine";
  const ended = why.startsWith("it ended");
  const after = message.slice(message.indexOf(line) + line.length).split("\n");
  // What the harness adds is no word of the program's.
  const words = after.filter((each) => /^\s*\|/.test(each));
  const last = logLines(words.length > 0 ? words : logOf(scenario, who), isFatal);
  // The stack that did not start is not yet the scenario's; its folder is in its command line.
  const stack = /\/[\da-f]{8}\/(\d{1,3})\//.exec(message)?.[1];
  const log = stack ? `logs/${stack}-${who}.log` : "the folder `logs`";
  return {
    culprit: who,
    sentence: `The ${who} did not come up: ${ended ? `${why.replace(/:$/, "")} before it could ${what}` : `it did not ${what} ${why.replace("not ", "")}`}.`,
    lines: last.length > 0 ? last : after.filter((each) => /^\s*command: /.test(each)),
    advice:
      /likely cause: (.*)/.exec(message)?.[1] ??
      (last.length === 0
        ? "It said nothing. Run its command line yourself, and see what it waits for or why it ends"
        : `Its own last words tell ${ended ? "why" : "how far it got"}; its whole log is among the reports, in ${log}`),
  };
};

/** A process ended by itself in the scenario's time: nobody had told it to. */
const died: Clue = ({ scenario, message, calls, processes, marks }) => {
  const onPurpose = ({ name, at, ms = 0, told }: ProcessSpan) =>
    told === true ||
    marks.some(
      (mark) =>
        new RegExp(`^(?:kill|stop|terminate) ${name}`).test(mark.what) && mark.at <= at + ms + SLACK_MS,
    );
  const end = scenario.at + scenario.ms;
  const dead = processes.find(
    (process) =>
      process.ms !== undefined &&
      process.at + process.ms <= end &&
      ["gateway", "driver", "engine"].includes(process.name) &&
      (process.ending !== "exit code 0" || process.told === false) &&
      !onPurpose(process),
  );
  const told = /the driver is gone: (?:it )?([^\n]*)/.exec(message);
  if (!dead && !told) return undefined;
  const culprit = (dead?.name ?? "driver") as "gateway" | "driver" | "engine";
  const how = dead ? `with ${dead.ending}` : told![1]!.replace(/^ended |, its log with$/g, "");
  const when = dead ? ` ${took(dead.at + (dead.ms ?? 0) - scenario.at)} into the scenario` : "";
  const said = told ? message.slice(told.index).split("\n").slice(1) : logOf(scenario, culprit);
  // Who is killed has no time to say so, and a warning is no reason to end.
  const killed = /\bSIGKILL\b/.test(how);
  const complained = !killed && said.some(isFatal);
  const last = complained ? logLines(said, isFatal) : lastLines(said);
  // A watch is open all the time: another call tells more of what it was at.
  const cutShort = calls.filter(({ details }) => GONE.test(details));
  const broken = cutShort.find((call) => !isWatch(call)) ?? cutShort[0];
  return {
    culprit,
    sentence: `The ${culprit} died${when}: it ended ${how}, and nobody had told it to.`,
    lines: complained || !broken ? last : [callLine(broken, scenario.at), ...last.slice(-1)],
    advice: `${culprit === "engine" ? "An" : "A"} ${culprit} must outlive every call. ${
      complained
        ? "Its last words tell what ended it"
        : killed
          ? "It was killed from outside: by somebody, or by the kernel for want of memory, which `dmesg` tells"
          : "It did not say why it ended: look at what it does for the call that was under way"
    }`,
  };
};

/** The scenario itself counted what is on the engine after the driver had deleted the sandbox. */
const stillThere: Clue = ({ scenario, message, calls }) => {
  const deletion = calls.findLast(({ method, status }) => method === "DeleteSandbox" && status === "OK");
  const more = /^\+\s+"(container|volume|secret)": [1-9]/;
  const found = diffOf(message)?.filter((line) => more.test(line)) ?? [];
  if (!deletion || found.length === 0) return undefined;
  return leftByDriver(
    found.map((line) => more.exec(line)![1]!),
    [...findingLines(scenario, message), callLine(deletion, scenario.at)],
  );
};

const leftByDriver = (kinds: string[], lines: string[]): Explanation => ({
  culprit: "driver",
  sentence: `The driver left something behind: ${kinds.join(", ") || "see below"}. A deleted sandbox must leave nothing.`,
  lines,
  advice:
    "Look at what the driver does for DeleteSandbox. The run itself has removed it; a dead run's is removed by `bun harness.ts sweep`",
});

const leftBehind: Clue = ({ message }) => {
  if (!/^Left behind:/m.test(message)) return undefined;
  const items = message
    .slice(message.indexOf("Left behind:"))
    .split("\n")
    .slice(1)
    .map((line) => line.trim());
  const kept = items.filter((item) => /^(?:container|volume|secret|network|process|mount) /.test(item));
  // Nobody can tell what is left on an engine that is gone.
  if (kept.length === 0 && items.some((item) => ENGINE_GONE.test(item))) return undefined;
  const unreachable = items.find((item) => /UNAVAILABLE|ECONNREFUSED|No connection/.test(item));
  if (kept.length === 0 && unreachable)
    return {
      culprit: "gateway",
      sentence: "The scenario's sandboxes could not be deleted: the gateway did not answer any more.",
      lines: [unreachable],
      advice: "Find out why it was gone by then: the end of its log is below",
    };
  const kinds = [...new Set(kept.map((item) => item.split(" ", 1)[0]!))];
  return leftByDriver(kinds, kept.length > 0 ? kept : items);
};

const engineGone: Clue = ({ scenario, message, calls, marks }) => {
  // The harness' own look at the engine is the best proof.
  const looked = scenario.engine.find((each) => ENGINE_GONE.test(each));
  const isArranged = marks.some(({ what }) => ENGINE_FAULT.test(what));
  const call = calls.find(({ details }) => ENGINE_GONE.test(details));
  const said = message.split("\n").find((each) => ENGINE_GONE.test(each));
  if (!looked && (isArranged || (!call && !said))) return undefined;
  const lines = [call ? callLine(call, scenario.at) : (said ?? ""), looked ?? ""];
  const [socket = "SOCKET"] = /\/[^\s:]{1,200}\.sock\b/.exec(lines.join("\n")) ?? [];
  return {
    culprit: "engine",
    sentence: "The engine could not be reached: its API service is gone, or never was there.",
    lines,
    advice: `See whether it runs: \`podman --url unix://${socket} info\`, and \`bun harness.ts doctor\``,
  };
};

const imageMissing: Clue = ({ scenario, message, calls }) => {
  const pattern =
    /image[^\n]{0,200}(?:cannot be had|not found|not known|pull failed|no such|manifest unknown|unauthorized)|pull(?:ing)? image[^\n]{0,200}(?:fail|error)|(?:ErrImagePull|ImagePullBackOff|no such image)/i;
  const call = calls.find(({ details }) => pattern.test(details));
  const line =
    (call && callLine(call, scenario.at)) ?? message.split("\n").find((each) => pattern.test(each));
  if (!line || (call && /image/i.test(scenario.title))) return undefined;
  const [, image] =
    /\bimage (?:pull failed: )?(?:initializing source docker:\/\/)?([\w.-]{1,200}[/:][\w./:@-]{0,300}\w)/.exec(
      line,
    ) ?? [];
  return {
    culprit: "engine",
    sentence: `The engine has no ${image ? `image ${image}` : "such image"}, and cannot get it.`,
    lines: [line],
    advice: "Pull or build it, or name another one: OPENSHELL_SANDBOX_IMAGE, OPENSHELL_SUPERVISOR_IMAGE",
  };
};

/** A secret was found where none may be. Reports have it redacted, and that shows where it was. */
const leaked: Clue = ({ scenario, message, calls }) => {
  const { title, verdict, logs } = scenario;
  const isAbout = /\b(?:token|secret|credential)/i.test(title);
  const isPlace = /\b(?:is|are) in no\b|cannot read|leak|in the clear|must not|not\.to(?:Contain|Match)/i;
  if (verdict !== "fail" || !isAbout || !isPlace.test(`${message} ${title}`)) return undefined;
  const inLog = (["driver", "gateway"] as const).flatMap((who) => {
    const line = logs[who].find((each) => FOUND_SECRET.test(each));
    return line ? [{ culprit: who, place: `in the ${who}'s log`, line }] : [];
  });
  const answer = calls.find(({ responses, events }) =>
    FOUND_SECRET.test(JSON.stringify([responses, events])),
  );
  const found =
    /\blog/i.test(message) && inLog[0]
      ? inLog[0]
      : answer && /answer/i.test(message)
        ? { culprit: "driver" as const, place: `in the driver's answer to ${answer.method}`, line: "" }
        : secretPlace(`${message} ${scenario.seen}`);
  return {
    culprit: found.culprit,
    sentence: `A secret is where it must not be: ${found.place}. Reports show it redacted.`,
    lines: [found.line, ...(diffOf(message) ?? message.split("\n").filter((line) => line.trim() !== ""))],
    advice:
      "The supervisor gets its token in a file; it belongs in no environment, argument, label, answer or log. Take it as leaked: whoever saw that place can be the sandbox",
  };
};

/** What stands in the place of a secret in a report. */
const FOUND_SECRET = /<token>|<redacted>|<private key>/;

/** Who is to be asked for a secret in a place that is told in words. */
function secretPlace(text: string): { culprit: Culprit; place: string; line: string } {
  const places: [RegExp, Culprit, string][] = [
    [/driver's/i, "driver", "with the driver"],
    [/gateway's/i, "gateway", "with the gateway"],
    [/environment|argument|label|container/i, "driver", "in what the driver gave the sandbox's container"],
  ];
  const [, culprit, place] = places.find(([pattern]) => pattern.test(text)) ?? [];
  return { culprit: culprit ?? "unclear", place: place ?? "see what was found", line: "" };
}

/** A suite that asks one process alone says with its name who is at fault. */
const onlySubject: Clue = ({ scenario, message, calls }) => {
  const culprit = ({ "driver-contract": "driver", "gateway-adapter": "gateway" } as const)[scenario.suite];
  if (!culprit || scenario.verdict !== "fail") return undefined;
  const role = culprit === "driver" ? "the driver alone was asked" : "the driver was scripted";
  const finding = scenario.expected ? [] : message.split("\n").filter((line) => line.trim() !== "");
  return {
    culprit,
    sentence: `The ${culprit} broke the rule; ${role}.`,
    lines: finding.length > 0 ? finding : calls.slice(-2).map((call) => callLine(call, scenario.at)),
    advice: scenario.source
      ? `Compare with the rule's source: ${scenario.source}`
      : "Compare with the contract, proto/v0.0/compute_driver.proto",
  };
};

/** The driver has a call and does not answer it. */
const hung: Clue = ({ scenario, calls, marks }) => {
  const end = scenario.at + (scenario.failedMs ?? scenario.ms);
  const call = calls.findLast(
    (each) =>
      !isWatch(each) &&
      (each.status === "" || each.status === "DEADLINE_EXCEEDED") &&
      !wasAskedFor(each, marks) &&
      (each.ms ?? end - each.at) > HANGS_MS,
  );
  if (!call) return undefined;
  return {
    culprit: "driver",
    sentence: `The driver did not answer ${call.method} for ${took(call.ms ?? end - call.at)}.`,
    lines: [callLine(call, scenario.at), ...lastLines(scenario.logs.driver).slice(-2)],
    advice: "See what it waits for: how its log ends, and whether the engine still answers (`podman info`)",
  };
};

/** The driver refused a call, and the scenario had not arranged that. */
const refused: Clue = ({ scenario, message, calls, marks }) => {
  const candidates = calls.filter(
    ({ status, method, ...call }) =>
      !["", "OK", "CANCELLED"].includes(status) &&
      !(method === "WatchSandboxes" && status === "UNAVAILABLE") &&
      // A driver of an older contract has none, and a gateway does without.
      !(method === "GetGatewayListenerRequirements" && status === "UNIMPLEMENTED") &&
      !wasAskedFor({ ...call, method }, marks),
  );
  const call =
    candidates.findLast(({ details }) => details !== "" && message.includes(details)) ??
    candidates.findLast(({ status }) => UNEXPECTED.has(status));
  if (!call) return undefined;
  // An answer that tells of somebody else's socket is an answer all the same.
  const gone = call.status === "UNAVAILABLE" && GONE.test(call.details);
  return {
    culprit: "driver",
    sentence: gone
      ? `The driver could not be reached for ${call.method}: nobody listened on its socket.`
      : `The driver answered ${call.method} with ${call.status}.`,
    lines: [callLine(call, scenario.at), ...logLines(scenario.logs.driver).filter(isComplaint).slice(-2)],
    advice: gone
      ? "Find out why it was gone by then: the end of its log is below"
      : `Look in the driver's log at that moment for what the engine answered it, and what it made of that; ${rulesOf(call.method)}`,
  };
};

/** Where the rules of a method are: the group of checks that is about it. */
function rulesOf(method: string): string {
  const groups: Record<string, string> = {
    ValidateSandboxCreate: "C",
    CreateSandbox: "D",
    GetSandbox: "E",
    ListSandboxes: "E",
    StopSandbox: "F",
    StartSandbox: "F",
    DeleteSandbox: "G",
    WatchSandboxes: "H",
  };
  const group = groups[method] ? ` --only ${groups[method]}` : "";
  return `\`bun harness.ts check${group}\` asks the driver alone`;
}

const containerEnded: Clue = ({ scenario, message, calls, marks }) => {
  const line = message
    .split("\n")
    .find((each) => /Ready=False (?:Container(?:Exited|Failed|Died)|OOMKilled)/.test(each));
  if (!line) return undefined;
  const running = scenario.engine.find((each) => each.endsWith(" running"));
  if (running) {
    const scripted = marks.some(({ what }) => what.startsWith("fault WatchSandboxes:"));
    return {
      culprit: scripted ? "gateway" : "driver",
      sentence: scripted
        ? "The gateway believes news of the past: the container runs."
        : "The driver told of an end, and the container runs.",
      lines: [line.trim(), running],
      advice: "Find the snapshot among what WatchSandboxes sent, and compare its time with the last start",
    };
  }
  const start = calls.findLast(({ method }) => /^(?:Start|Stop|Create)Sandbox$/.test(method));
  if (start?.method === "StartSandbox" && start.status === "OK")
    return {
      culprit: "unclear",
      sentence: "The sandbox was started again, and its container is not running.",
      lines: [callLine(start, scenario.at), line.trim(), ...scenario.engine],
      advice:
        "Either the driver said OK and started nothing (the engine's events tell), or what runs in it ended at once (its last words on the engine tell)",
    };
  return {
    culprit: "supervisor",
    sentence: "The sandbox's container ended, and the gateway calls that an error.",
    lines: [line.trim(), ...scenario.engine],
    advice: "Its last words on the engine tell why the supervisor, or the command in it, ended",
  };
};

const neverConnected: Clue = ({ scenario, message }) => {
  const line = message
    .split("\n")
    .find((each) => /SupervisorNotConnected|DependenciesNotReady|supervisor session/i.test(each));
  if (!line) return undefined;
  return {
    culprit: "supervisor",
    sentence: "The container runs, but its supervisor has no session with the gateway.",
    lines: [line.trim(), ...scenario.engine],
    advice:
      "The supervisor must reach the gateway's address from inside the sandbox: network, token file, TLS",
  };
};

/** The sandbox was deleted, and no watch said so: a gateway shows it as DELETING for ever. */
const neverToldOfEnd: Clue = ({ scenario, message, calls, marks }) => {
  const watches = calls.filter((call) => isWatch(call) && call.events);
  if (!/\bDELETING\b/.test(message) || marks.length > 0 || watches.length === 0) return undefined;
  const events = watches.flatMap((watch) => watch.events!);
  const isTold = (id: string) =>
    events.some(({ sandbox, event }) => sandbox === id && "deleted" in (event as object));
  const deletion = calls.find(
    ({ method, status, sandbox }) => method === "DeleteSandbox" && status === "OK" && !isTold(sandbox),
  );
  if (!deletion) return undefined;
  return {
    culprit: "driver",
    sentence: "The driver deleted the sandbox, and its watch never said that it is gone.",
    lines: [...findingLines(scenario, message), callLine(deletion, scenario.at)],
    advice:
      "Look at what the driver reports an end from. Podman loses events when it rotates the file that it keeps them in: " +
      'events_logfile_max_size = "0" in containers.conf',
  };
};

/** The driver did all that it was asked, and the public API still shows something else. */
const gatewayAlone: Clue = ({ scenario, message, calls, marks }) => {
  // What a gateway asks while it starts is about no sandbox, and says nothing of this scenario.
  const asked = calls.filter((call) => !isWatch(call) && call.sandbox !== "");
  if (scenario.verdict !== "fail" || asked.length === 0) return undefined;
  if (asked.some(({ status }) => status !== "OK") || marks.length > 0) return undefined;
  const count = asked.length === 1 ? "The only call" : `All ${asked.length} calls`;
  return {
    culprit: "gateway",
    sentence: `${count} that crossed the socket ended with OK: look at the gateway first.`,
    lines: [...findingLines(scenario, message), callLine(asked.at(-1)!, scenario.at)],
    advice: "Compare the engine's view with what the scenario expects: the driver may have said OK too early",
  };
};

const onPurpose: Clue = ({ scenario, message, marks }) => {
  if (marks.length === 0 || scenario.verdict !== "fail") return undefined;
  const done = marks.slice(-2);
  return {
    culprit: "unclear",
    sentence: `It went wrong after something was done on purpose: ${clipped(done.map(({ what }) => markWords(what)).join(", then "), 120)}.`,
    lines: [
      ...findingLines(scenario, message),
      ...done.map(({ at, what }) => `${offset(at - scenario.at)}  ${markWords(what)}`),
    ],
    advice: "Follow the timeline from there: which call, log line or phase is the first that should not be",
  };
};

const CLUES: Clue[] = [
  cutOff,
  wrongSetting,
  listedWrongly,
  overloaded,
  notStarted,
  neverCameUp,
  died,
  leftBehind,
  stillThere,
  engineGone,
  imageMissing,
  leaked,
  onlySubject,
  hung,
  refused,
  containerEnded,
  neverConnected,
  neverToldOfEnd,
  gatewayAlone,
  onPurpose,
];

function nothingFound({ scenario, message }: Case): Explanation {
  const harness = scenario.verdict === "error";
  const hasLogs = scenario.logs.gateway.length + scenario.logs.driver.length > 0;
  return {
    culprit: harness ? "harness" : "unclear",
    sentence: harness
      ? "The harness or the machine failed, not the subject."
      : "What was recorded does not tell the processes apart.",
    lines: (diffOf(message) || scenario.expected
      ? findingLines(scenario, message)
      : message.split("\n").filter((line) => line.trim() !== "")
    )
      .slice(0, 3)
      .map((line) => clipped(line)),
    advice: hasLogs
      ? "Read both logs for the scenario's time, below"
      : "No log has a line of its time: run it again with `--verbose 1`, which shows all",
  };
}

/** Of a scenario that is no bad news: what a reader may want to know of it. */
function quiet({ scenario, message }: Case): Explanation {
  const sentences: Partial<Record<Verdict, string>> = {
    known: "It fails, as it is known to.",
    older: "The driver keeps an older contract, which has no such rule.",
    skip: "It was not run.",
  };
  return {
    culprit: "unclear",
    sentence: sentences[scenario.verdict] ?? "",
    lines: message ? [clipped(message)] : [],
    advice: "",
  };
}

// What clues share

/** How much later than it happened something may be recorded, in milliseconds. */
const SLACK_MS = 200;
/** From here on a call hangs, in milliseconds; the slowest honest ones wait for a stop timeout. */
const HANGS_MS = 10_000;
/** A rule of the proxy before the engine: for a method of HTTP and a path, or for all. */
const ENGINE_FAULT = /^fault (?:[A-Z]+ |\*:)/;
/** The words of those who cannot reach the engine: the harness, the drivers, Podman's own client. */
const ENGINE_GONE =
  /engine on \S{1,200}: .{0,300}(?:ECONN|ENOENT|connect|socket|closed|nobody listens)|cannot connect to (?:podman|docker)|(?:podman|docker|containerd)[\w.-]*\.sock\W{1,3}(?:connect: )?(?:connection refused|no such file|ECONN|ENOENT)|event stream ended unexpectedly/i;
/** The words with which a call ends when nobody serves the socket any more. */
const GONE = /ECONNREFUSED|ECONNRESET|ENOENT|No connection established|Connection dropped/;
/** What no driver answers in order. */
const UNEXPECTED = new Set([
  "INTERNAL",
  "UNKNOWN",
  "UNIMPLEMENTED",
  "UNAVAILABLE",
  "RESOURCE_EXHAUSTED",
  "DATA_LOSS",
  "ABORTED",
]);

/** Whether the scenario itself made that call end as it did: by a rule on the tap, or by ending the driver. */
function wasAskedFor(
  { method, at, ms = 0 }: Pick<CallRecord, "method" | "at" | "ms">,
  marks: Mark[],
): boolean {
  const wasBefore = (mark: Mark) => mark.at <= at + SLACK_MS;
  if (marks.some((mark) => mark.what.startsWith(`fault ${method}:`) && wasBefore(mark))) return true;
  // What the engine was made to answer comes back as the driver's answer.
  if (marks.some((mark) => ENGINE_FAULT.test(mark.what) && wasBefore(mark))) return true;
  const driver = marks.filter((mark) => mark.what.endsWith(" driver") && mark.at <= at + ms + SLACK_MS);
  const down = driver.findLast(({ what }) => !/^(?:start|continue) /.test(what));
  const up = driver.findLast(({ what }) => /^(?:start|continue) /.test(what));
  // It was away when the call began, or went away before it was answered.
  return down !== undefined && (!up || up.at < down.at || up.at >= at - SLACK_MS || down.at >= at);
}

const logOf = ({ logs }: ScenarioResult, who: string): string[] =>
  who === "gateway" || who === "driver" ? logs[who] : [];

const isComplaint = (line: string): boolean =>
  /\b(?:ERROR|FATAL|WARN|panicked|panic|Error)\b|× |╰/.test(line);

/** What a program says of what ends it; a warning, it lived with. */
const isFatal = (line: string): boolean => isComplaint(line) && !/\bWARN\b/.test(line);

/** Lines of a log as they are shown where there is room for few: without spans, and without a gateway's every answer. */
export const shortLog = (lines: string[]): string[] =>
  lines.map(withoutSpans).filter((line) => !/\bmultiplex: response status=200\b/.test(line));

/**
 * The last complaint of a log with what follows it, or else the last lines; without the frame that a failure puts around
 * them.
 */
function logLines(lines: string[], isOne = isComplaint): string[] {
  const said = unframed(lines);
  const last = said.findLastIndex(isOne);
  return last < 0 ? said.slice(-3) : said.slice(last, last + 3);
}

const lastLines = (lines: string[]): string[] => unframed(lines).slice(-3);

const unframed = (lines: string[]): string[] =>
  shortLog(lines)
    .map((line) => line.replace(/^\s{0,200}\|?\s{0,200}/, "").trimEnd())
    .filter(Boolean);

/** Of a comparison of two objects, what differs with a line around it; undefined if a message is none. */
export function diffOf(message: string): string[] | undefined {
  const end = message.search(/^- Expected {2}- \d+$/m);
  if (end < 0) return undefined;
  const lines = message.slice(0, end).trimEnd().split("\n").slice(1);
  const differs = (line = "") => /^[-+] /.test(line);
  const near = lines.filter((_, index) => [index - 1, index, index + 1].some((at) => differs(lines[at])));
  return near.filter((line) => !/^\s*[[\]{}],?$/.test(line));
}

/** What an assertion found, in a line or two. */
function findingLines({ expected, seen }: ScenarioResult, message: string): string[] {
  const changed = diffOf(message)?.filter((line) => /^[-+] /.test(line)) ?? [];
  if (changed.length === 1 || changed.length === 2) return changed;
  if (expected && seen) return [`expected ${expected}, saw ${seen}`];
  if (changed.length > 0) return [expected ? `missed ${expected}` : `saw ${seen}, which was not expected`];
  if (expected) return [`expected ${expected}`];
  return [message.split("\n").find((line) => line.trim() !== "") ?? "", seen && `last seen: ${seen}`];
}
