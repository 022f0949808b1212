// SPDX-License-Identifier: Apache-2.0

/** What becomes of a sandbox that a driver is asked to make, and what its workload is given. */
import type { Given } from "../../harness/conformance/backend.ts";
import { group } from "../../harness/conformance/check.ts";
import { holds, refusalOf, type Refused, refuses, same } from "../../harness/conformance/finding.ts";
import { isUp, phaseOf, type Ref } from "../../harness/conformance/driver.ts";
import { Box, sha256, type Trial } from "../../harness/conformance/trial.ts";
import { field } from "../../harness/conformance/wire.ts";
import type { DriverSandboxSpec } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxSpec.ts";

const check = group("D CreateSandbox");

/** What cannot be made, and is found out at different times on the way. */
const FAILING: Record<string, () => DriverSandboxSpec> = {
  "more GPUs than any machine has": () => ({ resource_requirements: { gpu: { count: 1_000 } } }),
  "an image that is nowhere": () => ({ template: { image: nowhere() } }),
  // A gateway lets 256 KiB through. Linux takes 128 KiB in one variable, and says so only when the program is started.
  "a command that is too long for one variable": () => ({
    command: ["true", ...Array.from({ length: 5 }, () => "x".repeat(30 * 1024))],
  }),
};

const nowhere = () => `localhost/no-such-image-${crypto.randomUUID()}:1`;

/** Has it created. Resolves with the refusal, if it is refused. */
async function attempt(trial: Trial, sandbox: Ref): Promise<Refused | undefined> {
  await trial.forget(sandbox);
  return refusalOf(trial.driver.create(sandbox));
}

/** What the supervisor is told to run. */
function mainProcess({ environment }: Given): unknown {
  const spec = environment.OPENSHELL_MAIN_PROCESS_SPEC ?? "";
  const [, encoded] = /^base64url:(.*)$/.exec(spec) ?? [];
  try {
    return JSON.parse(encoded === undefined ? spec : Buffer.from(encoded, "base64url").toString());
  } catch {
    return spec;
  }
}

check(
  "DC-27",
  "MUST",
  "GetSandbox and ListSandboxes know a sandbox once CreateSandbox has answered",
  {
    source: "gateway 0.0.112, compute/mod.rs:3170",
    harm: "A new sandbox is taken for one that is gone, and vanishes from users' lists.",
  },
  async (trial) => {
    const box = await trial.create();
    same("the id in ListSandboxes", (await box.listed())?.id, box.id);
    same("the id in GetSandbox", (await box.get()).id, box.id);
  },
);

check(
  "DC-28",
  "MUST",
  "A snapshot has the id and the name that CreateSandbox was given",
  {
    source: "gateway 0.0.112, compute/mod.rs:3719",
    harm: "Users see their sandbox under a name that they did not give, or never see it become ready.",
  },
  async (trial) => {
    const box = await trial.create();
    const { id, name } = await box.get();
    same("id and name", { id, name }, { id: box.id, name: box.name });
  },
);

check(
  "DC-29",
  "SHOULD",
  "A snapshot has the workspace that CreateSandbox was given",
  {
    source: "contract, DriverSandbox; Podman driver 0.0.112, watcher.rs:372; Docker driver does the same",
    harm: "Whoever reads a driver's snapshots cannot tell sandboxes of one name apart.",
  },
  async (trial) => {
    const box = await trial.create(trial.sandbox({}, { workspace: "research" }));
    same("the workspace", (await box.get()).workspace, "research");
  },
);

check(
  "DC-30",
  "MUST",
  "CreateSandbox answers ALREADY_EXISTS for an id that is taken, and leaves that sandbox as it is",
  {
    source: "gateway 0.0.112, compute/mod.rs:969",
    harm: "A create that is repeated fails with an internal error, or destroys what was running.",
  },
  async (trial) => {
    const box = await trial.running();
    const state = async () => ({
      instance: (await box.get()).status?.instance_id,
      started: (await trial.subject.backend?.inspect?.(box.id))?.started,
      has: await trial.subject.backend?.list?.(box.id),
    });
    const before = await state();
    await refuses(trial.driver.create(box.asked), "ALREADY_EXISTS");
    same("the sandbox that was there", await state(), before);
  },
);

check(
  "DC-31",
  "MUST",
  "Sandboxes of one name in two workspaces have nothing to do with each other",
  {
    source: "contract, DriverSandbox; Podman driver 0.0.112, container.rs:154",
    harm: "One team's name is taken because another team uses it, or one team deletes what is the other's.",
  },
  async (trial) => {
    const sandbox = trial.sandbox();
    const namesake = trial.sandbox({}, { name: sandbox.name, workspace: "research" });
    const [mine, theirs] = await Promise.all([trial.create(sandbox), trial.running(namesake)]);
    await mine.delete();
    await refuses(mine.get(), "NOT_FOUND");
    const left = await theirs.get();
    same("the namesake's id", left.id, theirs.id);
    holds(isUp(left), "a namesake that is up", left.status);
  },
);

check(
  "DC-32",
  "SHOULD",
  "CreateSandbox answers FAILED_PRECONDITION, and says why, to what an operator can mend",
  {
    source: "gateway 0.0.112, compute/mod.rs:977",
    harm: "Users read of an internal error: no other code's message reaches them as it is.",
  },
  async (trial) => {
    const sandbox = trial.sandbox(FAILING["more GPUs than any machine has"]!());
    await trial.forget(sandbox);
    const refused = await refuses(trial.driver.create(sandbox), "FAILED_PRECONDITION");
    holds(refused.details !== "", "a message for the user", "none");
  },
);

check(
  "DC-33",
  "SHOULD",
  "CreateSandbox refuses a sandbox without a name or without an id",
  {
    source: "Podman driver 0.0.112, driver.rs:698; VM driver does the same",
    harm: "Something runs that nobody can address, and nobody ever deletes.",
  },
  async (trial) => {
    const [nameless, idless] = [trial.sandbox({}, { name: "" }), trial.sandbox({}, { id: "" })];
    await trial.forget(nameless);
    trial.defer(async () => {
      const made = (await trial.driver.list()).find(({ name }) => name === idless.name);
      if (made) await trial.driver.delete(made);
    });
    for (const sandbox of [nameless, idless])
      await refuses(trial.driver.create(sandbox), "INVALID_ARGUMENT", "FAILED_PRECONDITION");
  },
);

check(
  "DC-34",
  "MUST",
  "Nothing is left of a sandbox that CreateSandbox refused",
  {
    source: "gateway 0.0.112, compute/mod.rs:969",
    harm: "Each failed create leaves a volume, a token or a container behind for ever: the gateway forgets it at once.",
  },
  async (trial) => {
    const residue = async (spec: DriverSandboxSpec) => {
      const sandbox = trial.sandbox(spec);
      if (!(await attempt(trial, sandbox))) return false;
      same("what there is", (await trial.subject.backend?.list?.(sandbox.id)) ?? [], []);
      await refuses(trial.driver.get(sandbox), "NOT_FOUND");
      return true;
    };
    const refused = await Promise.all(Object.values(FAILING).map((spec) => residue(spec())));
    if (!refused.includes(true)) trial.skip("the driver refuses nothing that can be asked of it here");
  },
);

check(
  "DC-35",
  "SHOULD",
  "A sandbox that fails after CreateSandbox has answered OK says so, and can be deleted",
  {
    source: "Docker driver 0.0.112, lib.rs:1119; VM driver does the same",
    harm: "A sandbox is provisioning for ever, and users cannot get rid of it.",
  },
  async (trial) => {
    const sandbox = trial.sandbox({ template: { image: nowhere() } });
    if (await attempt(trial, sandbox)) trial.skip("the driver answers CreateSandbox when all is made");
    const box = new Box(trial, sandbox, trial.driver);
    await box.until("a sandbox that a gateway shows as failed", (seen) => phaseOf(seen) === "ERROR");
    same("deleted", await box.delete(), true);
  },
);

check(
  "DC-36",
  "MUST",
  "The command reaches the supervisor argument by argument, and so does the wish for a terminal",
  {
    source: "contract, DriverSandboxSpec; supervisor 0.0.112, sandbox_env.rs:33",
    harm: "Commands with spaces, quotes or empty arguments run as something else, or users get no terminal.",
  },
  async (trial) => {
    const command = ["sh", "-c", 'echo "$1" | tr a b', "", "two  words", "$HOME;`id`", "*", "\\n'\"", "a\nb"];
    const box = await trial.create(trial.sandbox({ command, tty: true }));
    same("OPENSHELL_MAIN_PROCESS_SPEC", mainProcess(await box.given()), { version: 1, command, tty: true });
  },
);

check(
  "DC-37",
  "MUST",
  "The token is in a file that its owner alone may read, and nowhere else",
  {
    source:
      "contract, DriverSandboxSpec; Podman driver 0.0.112, container.rs:1178; Docker driver does the same",
    harm: "Sandboxes cannot reach the gateway, or whoever may list containers can act as any of them.",
  },
  async (trial) => {
    const sandbox_token = trial.token();
    const box = await trial.create(trial.sandbox({ sandbox_token }));
    const given = await box.given();
    const { labels, command, environment } = await box.workload();
    const snapshots = [await box.get(), await box.listed()];
    holds(/^[46]00$/.test(given.token?.mode ?? ""), "a token file with mode 400 or 600", given.token?.mode);
    const right = [sandbox_token, `${sandbox_token}\n`].map(sha256).includes(given.token?.sha256 ?? "");
    holds(right, "a file with the token", "a file with something else");
    for (const [place, content] of Object.entries({ labels, command, environment, given, snapshots }))
      holds(!JSON.stringify(content).includes(sandbox_token), `no token in the ${place}`, "the token");
  },
);

check(
  "DC-38",
  "MUST",
  "The supervisor is told the sandbox's id and name and the gateway's endpoint, whatever the user's environment says",
  {
    source: "Podman driver 0.0.112, container.rs:504; Docker, VM and Kubernetes drivers do the same",
    harm: "Sandboxes never become ready, or users make theirs pass for somebody else's.",
  },
  async (trial) => {
    const own = ["SANDBOX", "SANDBOX_ID", "ENDPOINT", "SANDBOX_TOKEN_FILE", "MAIN_PROCESS_SPEC"];
    const environment = Object.fromEntries(own.map((name) => [`OPENSHELL_${name}`, "http://spoofed:1"]));
    const box = await trial.create(trial.sandbox({ environment }));
    const seen = (await box.given()).environment;
    same("OPENSHELL_SANDBOX_ID", seen.OPENSHELL_SANDBOX_ID, box.id);
    same("OPENSHELL_SANDBOX", seen.OPENSHELL_SANDBOX, box.name);
    const { port } = new URL(trial.subject.owned!.stack.endpoint);
    holds((seen.OPENSHELL_ENDPOINT ?? "").includes(`:${port}`), `port ${port}`, seen.OPENSHELL_ENDPOINT);
    const spoofed = own.filter((name) => seen[`OPENSHELL_${name}`] === "http://spoofed:1");
    same("what the user could set", spoofed, []);
  },
);

check(
  "DC-39",
  "SHOULD",
  "The sandbox's own environment overrides its template's",
  {
    source: "Podman driver 0.0.112, container.rs:474; Docker driver does the same",
    harm: "Users who change one variable of a template get the template's value.",
  },
  async (trial) => {
    const template = { environment: { COLOUR: "template", SHAPE: "template" } };
    const box = await trial.create(trial.sandbox({ template, environment: { COLOUR: "sandbox" } }));
    const { COLOUR, SHAPE } = (await box.given()).environment;
    same("the environment", { COLOUR, SHAPE }, { COLOUR: "sandbox", SHAPE: "template" });
  },
);

check(
  "DC-40",
  "SHOULD",
  "The template's labels are on the workload, and the driver's own win over them",
  {
    source: "Podman driver 0.0.112, container.rs:596; Docker driver does the same",
    harm: "Operators cannot find sandboxes by label, or users give theirs another sandbox's identity.",
  },
  async (trial) => {
    const spoofed = {
      "openshell.ai/sandbox-id": crypto.randomUUID(),
      "openshell.ai/sandbox-name": "spoofed",
    };
    const box = await trial.running(trial.sandbox({ template: { labels: { team: "blue", ...spoofed } } }));
    const { id, name } = await box.get();
    same("id and name", { id, name }, { id: box.id, name: box.name });
    same("the template's label", (await box.workload()).labels.team, "blue");
  },
);

check(
  "DC-41",
  "SHOULD",
  "The workload has the limits of CPU and memory that were asked for",
  {
    source: "Podman driver 0.0.112, container.rs:616; Docker driver does the same",
    harm: "One sandbox takes the whole machine, or is killed for memory that it was promised.",
  },
  async (trial) => {
    if ((await trial.subject.backend?.limits?.()) === false)
      trial.skip("the backend's kernel has no controllers of CPU and memory");
    const resources = { cpu_limit: "500m", memory_limit: "256Mi" };
    const box = await trial.create(trial.sandbox({ template: { resources } }));
    const { cpuQuota, cpuPeriod, memory } = (await box.workload()).limits;
    same("CPUs", cpuQuota / cpuPeriod, 0.5);
    same("bytes of memory", memory, 256 * 1024 * 1024);
  },
);

check(
  "DC-42",
  "SHOULD",
  "CreateSandbox refuses quantities that it cannot read",
  {
    source: "Docker driver 0.0.112, lib.rs:2970",
    harm: "A mistyped limit is none: the sandbox runs with another one, and nobody is told.",
  },
  async (trial) => {
    const refused = async (resources: { cpu_limit?: string; memory_limit?: string }) => {
      const sandbox = trial.sandbox({ template: { resources } });
      await trial.forget(sandbox);
      await refuses(trial.driver.create(sandbox), "INVALID_ARGUMENT", "FAILED_PRECONDITION");
    };
    await Promise.all([refused({ cpu_limit: "plenty" }), refused({ memory_limit: "256Mib" })]);
  },
);

check(
  "DC-43",
  "MUST",
  "CreateSandbox ignores the status in its request",
  {
    source: "gateway 0.0.112, compute/mod.rs:3638",
    harm: "A new sandbox starts its life as failed or deleting: the gateway sends a placeholder there.",
  },
  async (trial) => {
    const conditions = [{ type: "Ready", status: "False", reason: "Placeholder" }];
    const status = { sandbox_name: "placeholder", instance_id: "placeholder", conditions, deleting: true };
    const box = await trial.running(trial.sandbox({}, { status }));
    const seen = await box.get();
    holds(
      !JSON.stringify(seen.status).toLowerCase().includes("placeholder"),
      "a status of its own",
      seen.status,
    );
    same("deleting", seen.status?.deleting, false);
  },
);

check(
  "DC-44",
  "MUST",
  "CreateSandbox answers within 10 s, also when the image cannot be had",
  {
    source: "gateway 0.0.112, compute/mod.rs:947",
    harm: "Users wait for ever: the gateway has no deadline of its own.",
  },
  async (trial) => {
    const refused = await attempt(trial, trial.sandbox({ template: { image: nowhere() } }));
    holds(refused?.code !== "DEADLINE_EXCEEDED", "an answer", refused?.message);
  },
);

// Beyond the table: what a gateway may send

check(
  "DC-130",
  "MUST",
  "A sandbox with the longest name and workspace that a gateway allows is made as any other",
  {
    source: "gateway 0.0.112, grpc/mod.rs:130",
    harm: "Names that the gateway accepts fail in the driver: its own prefixes make them too long for its platform.",
  },
  async (trial) => {
    const unique = crypto.randomUUID().replaceAll("-", "");
    const longest = { name: unique.slice(0, 19), workspace: `w-${unique.slice(15)}` };
    const box = await trial.running(trial.sandbox({}, longest));
    const { name, workspace } = await box.get();
    same("name and workspace", { name, workspace }, longest);
  },
);

check(
  "DC-131",
  "MUST",
  "Text reaches the workload as it is: any script, quotes, equals signs, blanks at the ends, and no text at all",
  {
    source: "gateway 0.0.112, grpc/validation.rs:396: it refuses NUL and line ends, and nothing else",
    harm: "Passwords and names arrive maimed, and programs fail where nobody looks.",
  },
  async (trial) => {
    const texts = ["grüße 你好 🦈 e\u0301 \u202Eשלום", "a=b==c", " $HOME `id` \\ ' \" % {} ", "\t", ""];
    const environment = Object.fromEntries(texts.map((text, index) => [`TEXT_${index}`, text]));
    const box = await trial.create(trial.sandbox({ environment, command: ["printf", ...texts] }));
    const given = await box.given();
    const seen = Object.keys(environment).map((name) => given.environment[name]);
    same("the environment's values", seen, texts);
    same("the command", mainProcess(given), { version: 1, command: ["printf", ...texts], tty: false });
  },
);

check(
  "DC-132",
  "MUST",
  "An environment of 200 variables, some of 8 KiB, reaches the workload whole",
  {
    source: "gateway 0.0.112, grpc/mod.rs:136: 128 of a template and 128 of a sandbox, 8 KiB each",
    harm: "Certificates and long lists are cut off, or the sandbox does not start.",
  },
  async (trial) => {
    const some = (prefix: string) =>
      Object.fromEntries(
        Array.from({ length: 100 }, (_, n) => [`${prefix}_${n}`, `${n}`.repeat(n < 4 ? 8_192 : 32)]),
      );
    const [ofTemplate, own] = [some("TEMPLATE"), some("OWN")];
    const box = await trial.create(
      trial.sandbox({ template: { environment: ofTemplate }, environment: own }),
    );
    const seen = (await box.given()).environment;
    const wanted = { ...ofTemplate, ...own };
    const wrong = Object.keys(wanted).filter((name) => seen[name] !== wanted[name]);
    same("variables that are missing or differ", wrong, []);
  },
);

check(
  "DC-133",
  "MUST",
  "A command of 256 arguments, one of 32 KiB, reaches the supervisor whole",
  {
    source: "gateway 0.0.112, grpc/validation.rs:33",
    harm: "Scripts that are given as an argument are cut off, or the sandbox does not start.",
  },
  async (trial) => {
    const command = Array.from({ length: 256 }, (_, n) =>
      n === 7 ? "x".repeat(32 * 1024) : `argument ${n}`,
    );
    const box = await trial.create(trial.sandbox({ command }));
    const seen = mainProcess(await box.given());
    holds(Bun.deepEquals(seen, { version: 1, command, tty: false }), "the whole command", seen);
  },
);

check(
  "DC-135",
  "MUST",
  "Fields that this contract does not have are ignored, on every level of a sandbox",
  {
    source: "contract, proto3; a later gateway sends them",
    harm: "A driver stops working on the day on which somebody upgrades the gateway.",
  },
  async (trial) => {
    const sandbox = trial.sandbox();
    const later = Buffer.concat([field(1_000, "of a later contract"), field(1_001, 7)]);
    const template = field(6, field(1, sandbox.spec?.template?.image ?? ""), field(10, later), later);
    const command = [field(12, "sleep"), field(12, "2147483")];
    const spec = field(4, template, field(9, later), field(11, trial.token()), ...command, later);
    const who = [field(1, sandbox.id), field(2, sandbox.name), field(6, "default")];
    const request = Buffer.concat([field(1, ...who, spec, field(5, later), later), later]);
    await trial.forget(sandbox);
    await trial.driver.send("ValidateSandboxCreate", request);
    await trial.driver.send("CreateSandbox", request);
    const { id, name } = await new Box(trial, sandbox, trial.driver).up();
    same("id and name", { id, name }, { id: sandbox.id, name: sandbox.name });
  },
);

check(
  "DC-136",
  "MUST",
  "Parts of a sandbox that are there and empty are as good as absent",
  {
    source: "gateway 0.0.112, compute/mod.rs:3404",
    harm: "Sandboxes fail when users leave a form's fields blank.",
  },
  async (trial) => {
    const template = { resources: {}, driver_config: {}, platform_config: {}, labels: {}, environment: {} };
    const spec = { log_level: "", environment: {}, resource_requirements: {}, command: [], template };
    const sandbox = trial.sandbox(spec);
    await trial.driver.validate(sandbox);
    await trial.running(sandbox);
  },
);

check(
  "DC-138",
  "SHOULD",
  "The log level that was asked for reaches the supervisor",
  {
    source: "Podman driver 0.0.112, container.rs:483; Docker driver does the same",
    harm: "Nobody can find out why a sandbox misbehaves.",
  },
  async (trial) => {
    const box = await trial.create(trial.sandbox({ log_level: "debug" }));
    same("OPENSHELL_LOG_LEVEL", (await box.given()).environment.OPENSHELL_LOG_LEVEL, "debug");
  },
);

check(
  "DC-139",
  "MUST",
  "The supervisor is told the user's environment, apart from its own, in OPENSHELL_USER_ENVIRONMENT",
  {
    source: "supervisor 0.0.112, process.rs:244; all drivers of upstream's set it",
    harm: "Commands that users execute in a sandbox lack the variables that its main process has.",
  },
  async (trial) => {
    const template = { environment: { SHAPE: "round" } };
    const box = await trial.create(trial.sandbox({ template, environment: { COLOUR: "blue" } }));
    const told = (await box.given()).environment.OPENSHELL_USER_ENVIRONMENT ?? "";
    holds(told.startsWith("{"), "a JSON object", told);
    same("the user's environment", JSON.parse(told), { COLOUR: "blue", SHAPE: "round" });
  },
);

check(
  "DC-140",
  "SHOULD",
  "Of two CreateSandbox calls for one id at the same time, one makes the sandbox and the other answers ALREADY_EXISTS",
  {
    source: "Docker driver 0.0.112, lib.rs:719; VM driver does the same",
    harm: "A create that is repeated because its answer was late destroys what the first one made.",
  },
  async (trial) => {
    const sandbox = trial.sandbox();
    const refusals = (await Promise.all([attempt(trial, sandbox), attempt(trial, sandbox)])).filter(Boolean);
    same(
      "refusals",
      refusals.map((refusal) => refusal?.code),
      ["ALREADY_EXISTS"],
    );
    await new Box(trial, sandbox, trial.driver).up();
  },
);

check(
  "DC-141",
  "MUST",
  "The name of a deleted sandbox is free again",
  {
    source: "gateway 0.0.112: names are unique among the sandboxes that there are",
    harm: "Users cannot make a sandbox again under the name that they use.",
  },
  async (trial) => {
    const first = await trial.create();
    await first.delete();
    const second = await trial.running(trial.sandbox({}, { name: first.name }));
    same("the id under the name", (await second.get()).id, second.id);
    await refuses(first.get(), "NOT_FOUND");
  },
);

check(
  "DC-143",
  "SHOULD",
  "CreateSandbox answers INVALID_ARGUMENT to a request without a sandbox",
  {
    source: "Podman driver 0.0.112, grpc.rs:225; Docker, VM and Kubernetes drivers do the same",
    harm: "A broken caller is told that its sandbox was made, or that the driver is broken.",
  },
  async ({ driver }) => {
    await refuses(driver.create(null), "INVALID_ARGUMENT");
  },
);

check(
  "DC-144",
  "SHOULD",
  "CreateSandbox makes a sandbox without an image of the driver's default one, or answers FAILED_PRECONDITION",
  {
    source: "Podman driver 0.0.112, driver.rs:743; Docker driver, lib.rs:537",
    harm: "Users who name no image read of an internal error, and not that they must name one.",
  },
  async (trial) => {
    const refused = await attempt(trial, trial.sandbox({ template: { image: "" } }));
    const code = refused?.code ?? "OK";
    holds(["OK", "FAILED_PRECONDITION"].includes(code), "OK or FAILED_PRECONDITION", refused?.message);
  },
);

check(
  "DC-160",
  "SHOULD",
  "A sandbox whose CreateSandbox failed can be created once the reason is gone",
  {
    source: "contract, CreateSandbox: after any error nothing may be left",
    harm: "Who corrects a typing error in the image is told that the sandbox exists already, and it does not.",
  },
  async (trial) => {
    const sandbox = trial.sandbox();
    await trial.forget(sandbox);
    const spec = { ...sandbox.spec, template: { image: "localhost/no-such-image:none" } };
    const failed = await refusalOf(trial.driver.create({ ...sandbox, spec }));
    if (!failed) trial.skip("the driver answers OK before it looks for the image");
    await trial.driver.create(sandbox);
    same("the id of the created sandbox", (await trial.driver.get(sandbox)).id, sandbox.id);
  },
);
