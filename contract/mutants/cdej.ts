// SPDX-License-Identifier: Apache-2.0

/** Drivers that are wrong about what they may make, what they made, what there is, and workspaces. */
import type { DriverSandbox__Output as Sandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { DriverSandboxSpec__Output as Spec } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxSpec.ts";
import type { DriverSandboxTemplate__Output as Template } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxTemplate.ts";
import type { Interceptors } from "../../keeper/tap.ts";
import { mutant, refusal } from "../mutant.ts";

type Code = Parameters<typeof refusal>[0];

/** Whether a call failed with this code. */
const has = (error: unknown, code: Code): boolean =>
  (error as { code?: number }).code === (refusal(code) as Error & { code?: number }).code;

/** Makes another sandbox than the one that was asked for. */
const making = (change: (sandbox: Sandbox) => Partial<Sandbox>): Interceptors => ({
  CreateSandbox: ({ sandbox }, pass) => pass({ sandbox: sandbox && { ...sandbox, ...change(sandbox) } }),
});

const withSpec = (change: (spec: Spec) => Partial<Spec>): Interceptors =>
  making(({ spec }) => ({ spec: spec && { ...spec, ...change(spec) } }));

const withTemplate = (change: (template: Template) => Partial<Template>): Interceptors =>
  withSpec(({ template }) => ({ template: template && { ...template, ...change(template) } }));

/** Tells something else in GetSandbox. */
const telling = (change: (sandbox: Sandbox) => Partial<Sandbox>): Interceptors => ({
  async GetSandbox(_, pass) {
    const { sandbox } = await pass();
    return { sandbox: sandbox && { ...sandbox, ...change(sandbox) } };
  },
});

/** Answers a failure with another code. */
const failing = (from: Code, to: Code) => (error: unknown) => {
  throw has(error, from) ? refusal(to) : error;
};

const values = <Value, Other>(map: Record<string, Value>, change: (value: Value) => Other) =>
  Object.fromEntries(Object.entries(map).map(([key, value]) => [key, change(value)]));

const isNowhere = (sandbox: Sandbox | null): boolean =>
  sandbox?.spec?.template?.image.includes("no-such-image-") ?? false;

const withFields = (sandbox: Sandbox | null, fields: Partial<Template>): Sandbox | null => {
  const { spec = null } = sandbox ?? {};
  const template = spec?.template && { ...spec.template, ...fields };
  return sandbox && { ...sandbox, spec: spec && { ...spec, template: template ?? null } };
};

// C ValidateSandboxCreate

mutant(
  "Does not implement ValidateSandboxCreate",
  [
    "DC-11",
    "DC-19",
    "DC-20",
    "DC-21",
    "DC-22",
    "DC-23",
    "DC-24",
    "DC-25",
    "DC-145",
    "DC-134",
    "DC-135",
    "DC-136",
    "DC-137",
  ],
  {
    async ValidateSandboxCreate() {
      throw refusal("UNIMPLEMENTED");
    },
  },
);

mutant("ValidateSandboxCreate makes a sandbox", ["DC-20"], () => {
  const made = new Map<string, Sandbox>();
  return {
    ValidateSandboxCreate({ sandbox }, pass) {
      if (sandbox) made.set(sandbox.id, sandbox);
      return pass();
    },
    GetSandbox: ({ sandbox_id }, pass) =>
      pass().catch((error: unknown) => {
        const sandbox = made.get(sandbox_id);
        if (!sandbox) throw error;
        return { sandbox };
      }),
  };
});

mutant("ValidateSandboxCreate wants a token", ["DC-11", "DC-20", "DC-21"], {
  async ValidateSandboxCreate({ sandbox }, pass) {
    await pass();
    if (!sandbox?.spec?.sandbox_token) throw refusal("FAILED_PRECONDITION");
    return {};
  },
});

mutant("ValidateSandboxCreate accepts a request without a sandbox", ["DC-22"], {
  ValidateSandboxCreate: async ({ sandbox }, pass) => (sandbox ? pass() : {}),
});

mutant("ValidateSandboxCreate does not read driver_config", ["DC-23"], {
  ValidateSandboxCreate: ({ sandbox }, pass) =>
    pass({ sandbox: withFields(sandbox, { driver_config: null }) }),
});

mutant("CreateSandbox does not read driver_config", ["DC-25"], {
  CreateSandbox: ({ sandbox }, pass) => pass({ sandbox: withFields(sandbox, { driver_config: null }) }),
});

mutant(
  "ValidateSandboxCreate takes what is missing here for the user's mistake",
  ["DC-24", "DC-25", "DC-145"],
  {
    ValidateSandboxCreate: (_, pass) => pass().catch(failing("FAILED_PRECONDITION", "INVALID_ARGUMENT")),
  },
);

mutant("Makes nothing of an agent socket that is asked for", ["DC-145"], {
  ValidateSandboxCreate: ({ sandbox }, pass) =>
    pass({ sandbox: withFields(sandbox, { agent_socket_path: "" }) }),
  CreateSandbox: ({ sandbox }, pass) => pass({ sandbox: withFields(sandbox, { agent_socket_path: "" }) }),
});

mutant("Reads no message of more than 512 KiB", ["DC-134"], {
  async ValidateSandboxCreate(_, pass, { request }) {
    if (request.length > 512 * 1024) throw refusal("RESOURCE_EXHAUSTED");
    return pass();
  },
});

mutant("ValidateSandboxCreate fails over a sandbox without a spec", ["DC-137"], {
  async ValidateSandboxCreate({ sandbox }, pass) {
    if (sandbox && !sandbox.spec) throw refusal("INTERNAL");
    return pass();
  },
});

mutant("Refuses platform_config, also an empty one", ["DC-136"], {
  async ValidateSandboxCreate({ sandbox }, pass) {
    if (sandbox?.spec?.template?.platform_config) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant("Refuses a sandbox with fields that it does not know", ["DC-11", "DC-135"], {
  async ValidateSandboxCreate(_, pass, { request }) {
    if (request.includes("of a later contract")) throw refusal("INVALID_ARGUMENT");
    return pass();
  },
});

// D CreateSandbox

mutant(
  "Lists a sandbox only when somebody has asked for it",
  ["DC-27", "DC-53", "DC-76", "DC-77", "DC-109", "DC-156"],
  () => {
    const asked = new Set<string>();
    return {
      GetSandbox({ sandbox_id }, pass) {
        asked.add(sandbox_id);
        return pass();
      },
      async ListSandboxes(_, pass) {
        return { sandboxes: (await pass()).sandboxes.filter(({ id }) => asked.has(id)) };
      },
    };
  },
);

mutant(
  "Tells the platform's name for the sandbox's",
  ["DC-28", "DC-40", "DC-50", "DC-80", "DC-109", "DC-130", "DC-135"],
  telling(({ status }) => ({ name: status?.sandbox_name })),
);

mutant(
  "Tells no workspace",
  ["DC-29", "DC-130"],
  telling(() => ({ workspace: "" })),
);

mutant("Answers INTERNAL for an id that is taken", ["DC-30", "DC-140"], {
  CreateSandbox: (_, pass) => pass().catch(failing("ALREADY_EXISTS", "INTERNAL")),
});

mutant("Takes a repeated create for the first one", ["DC-30", "DC-140"], {
  CreateSandbox: (_, pass) =>
    pass().catch((error: unknown) => {
      if (!has(error, "ALREADY_EXISTS")) throw error;
      return {};
    }),
});

mutant("Restarts the sandbox whose id is taken", ["DC-30"], () => {
  const taken = new Set<string>();
  return {
    CreateSandbox: (request, pass) =>
      pass().catch((error: unknown) => {
        taken.add(request.sandbox?.id ?? "");
        throw error;
      }),
    async GetSandbox(_, pass) {
      const { sandbox } = await pass();
      const status = sandbox?.status && { ...sandbox.status, instance_id: "another" };
      return { sandbox: sandbox && taken.has(sandbox.id) ? { ...sandbox, status: status ?? null } : sandbox };
    },
  };
});

mutant("Has one name for all workspaces", ["DC-31"], () => {
  const workspaces = new Map<string, string>();
  return {
    async CreateSandbox(request, pass) {
      const { name = "", workspace = "" } = request.sandbox ?? {};
      if ((workspaces.get(name) ?? workspace) !== workspace) throw refusal("ALREADY_EXISTS");
      workspaces.set(name, workspace);
      return pass();
    },
  };
});

mutant("Answers INTERNAL to what an operator can mend", ["DC-25", "DC-32", "DC-33"], {
  CreateSandbox: (_, pass) => pass().catch(failing("FAILED_PRECONDITION", "INTERNAL")),
});

mutant("Makes sandboxes without a name", ["DC-33"], {
  CreateSandbox: async ({ sandbox }, pass) => (sandbox && !sandbox.name ? {} : pass()),
});

mutant("Makes sandboxes without an id", ["DC-33"], {
  CreateSandbox: async ({ sandbox }, pass) => (sandbox && !sandbox.id ? {} : pass()),
});

mutant("Leaves behind what it made before a create failed", ["DC-34"], {
  CreateSandbox: ({ sandbox }, pass) =>
    pass().catch(async (error: unknown) => {
      if (sandbox && isNowhere(sandbox)) await pass({ sandbox: { ...sandbox, spec: null } });
      throw error;
    }),
});

mutant("Remembers sandboxes that it refused to make", ["DC-34"], () => {
  const refused = new Map<string, Sandbox>();
  return {
    CreateSandbox: ({ sandbox }, pass) =>
      pass().catch((error: unknown) => {
        if (sandbox && isNowhere(sandbox)) refused.set(sandbox.id, sandbox);
        throw error;
      }),
    async GetSandbox({ sandbox_id }, pass) {
      const sandbox = refused.get(sandbox_id);
      return sandbox ? { sandbox } : pass();
    },
  };
});

mutant("Accepts a sandbox that it cannot make, and never mentions it again", ["DC-35"], {
  CreateSandbox: async ({ sandbox }, pass) => (isNowhere(sandbox) ? {} : pass()),
});

mutant(
  "Runs the command through a shell",
  ["DC-36", "DC-131", "DC-133"],
  withSpec(({ command }) => ({ command: ["sh", "-c", command.join(" ")] })),
);

mutant(
  "Loses empty arguments",
  ["DC-36", "DC-131"],
  withSpec(({ command }) => ({ command: command.filter(Boolean) })),
);

mutant(
  "Gives no sandbox a terminal",
  ["DC-36"],
  withSpec(() => ({ tty: false })),
);

mutant(
  "Writes the token into a label",
  ["DC-37"],
  withSpec(({ template, sandbox_token }) => ({
    template: template && { ...template, labels: { ...template.labels, token: sandbox_token } },
  })),
);

mutant(
  "Writes the token into the environment",
  ["DC-37", "DC-139"],
  withSpec(({ environment, sandbox_token }) => ({ environment: { ...environment, TOKEN: sandbox_token } })),
);

mutant(
  "Gives the sandbox no token",
  ["DC-37"],
  withSpec(() => ({ sandbox_token: "" })),
);

mutant("Repeats in its snapshots what it was given, the token, too", ["DC-37", "DC-54", "DC-175"], () => {
  const specs = new Map<string, Spec | null>();
  return {
    CreateSandbox({ sandbox }, pass) {
      if (sandbox) specs.set(sandbox.id, sandbox.spec);
      return pass();
    },
    ...telling(({ id }) => ({ spec: specs.get(id) ?? null })),
  };
});

mutant(
  "Lets users name their sandbox in its environment",
  ["DC-38"],
  making(({ name, spec }) => ({ name: spec?.environment.OPENSHELL_SANDBOX ? "spoofed" : name })),
);

mutant(
  "Prefers the template's environment",
  ["DC-39"],
  withSpec(({ environment, template }) => ({ environment: { ...environment, ...template?.environment } })),
);

mutant(
  "Forgets the template's environment",
  ["DC-39", "DC-132", "DC-139"],
  withTemplate(() => ({ environment: {} })),
);

mutant(
  "Forgets the template's labels",
  ["DC-40"],
  withTemplate(() => ({ labels: {} })),
);

mutant(
  "Forgets the limits",
  ["DC-41", "DC-42"],
  withTemplate(() => ({ resources: null })),
);

mutant("Takes a limit that it cannot read for none", ["DC-42"], {
  CreateSandbox: ({ sandbox }, pass) =>
    pass().catch((error: unknown) => {
      const { spec = null } = sandbox ?? {};
      if (!sandbox || !spec?.template?.resources) throw error;
      const template = { ...spec.template, resources: null };
      return pass({ sandbox: { ...sandbox, spec: { ...spec, template } } });
    }),
});

mutant("Believes the status in the request", ["DC-43"], () => {
  const believed = new Map<string, Sandbox["status"]>();
  return {
    CreateSandbox({ sandbox }, pass) {
      if (sandbox?.status?.instance_id)
        believed.set(sandbox.id, { ...sandbox.status, deleting: false, conditions: [] });
      return pass();
    },
    ...telling(({ id, status }) => ({ status: believed.get(id) ?? status })),
  };
});

mutant("Pulls an image for as long as it takes", ["DC-44"], {
  CreateSandbox: ({ sandbox }, pass) => (isNowhere(sandbox) ? new Promise(() => {}) : pass()),
});

mutant("Has no room for names of more than 15 characters", ["DC-130"], {
  async CreateSandbox({ sandbox }, pass) {
    if ((sandbox?.name.length ?? 0) > 15) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant(
  "Knows no script but the Latin one",
  ["DC-131"],
  withSpec(({ environment }) => ({
    environment: values(environment, (value) => Buffer.from(value, "latin1").toString("latin1")),
  })),
);

mutant(
  "Takes off the blanks around what the environment says",
  ["DC-131"],
  withSpec(({ environment }) => ({ environment: values(environment, (value) => value.trim()) })),
);

mutant(
  "Cuts values of the environment off at 4 KiB",
  ["DC-132"],
  withSpec(({ environment }) => ({ environment: values(environment, (value) => value.slice(0, 4_096)) })),
);

mutant(
  "Takes the first 100 arguments of a command",
  ["DC-133"],
  withSpec(({ command }) => ({ command: command.slice(0, 100) })),
);

mutant(
  "Forgets the log level",
  ["DC-138"],
  withSpec(() => ({ log_level: "" })),
);

mutant("Never gives a name free again", ["DC-141"], () => {
  const taken = new Map<string, string>();
  return {
    async CreateSandbox({ sandbox }, pass) {
      const name = `${sandbox?.workspace}/${sandbox?.name}`;
      const holder = taken.get(name) ?? sandbox?.id;
      if (sandbox?.name && holder !== sandbox.id) throw refusal("ALREADY_EXISTS");
      taken.set(name, sandbox?.id ?? "");
      return pass();
    },
  };
});

mutant("CreateSandbox accepts a request without a sandbox", ["DC-143"], {
  CreateSandbox: async ({ sandbox }, pass) => (sandbox ? pass() : {}),
});

mutant("CreateSandbox fails over a sandbox without an image", ["DC-144"], {
  async CreateSandbox({ sandbox }, pass) {
    if (sandbox && !sandbox.spec?.template?.image) throw refusal("INTERNAL");
    return pass();
  },
});

// E GetSandbox and ListSandboxes

mutant(
  "GetSandbox answers INTERNAL for an unknown id",
  ["DC-20", "DC-31", "DC-34", "DC-45", "DC-48", "DC-72", "DC-78", "DC-141", "DC-162"],
  {
    GetSandbox: (_, pass) => pass().catch(failing("NOT_FOUND", "INTERNAL")),
  },
);

mutant(
  "GetSandbox answers with the sandbox that was made last",
  ["DC-31", "DC-46", "DC-48", "DC-80", "DC-141"],
  () => {
    let last = "";
    return {
      async CreateSandbox(request, pass) {
        const response = await pass();
        last = request.sandbox?.id ?? "";
        return response;
      },
      GetSandbox: (request, pass) => pass({ ...request, sandbox_id: last || request.sandbox_id }),
    };
  },
);

mutant("GetSandbox answers NOT_FOUND to a request without an id", ["DC-47"], {
  GetSandbox: (_, pass) => pass().catch(failing("INVALID_ARGUMENT", "NOT_FOUND")),
});

mutant("GetSandbox looks for the name when it does not know the id", ["DC-31", "DC-48", "DC-141"], () => {
  const ids = new Map<string, string>();
  return {
    CreateSandbox({ sandbox }, pass) {
      if (sandbox) ids.set(sandbox.name, sandbox.id);
      return pass();
    },
    GetSandbox: (request, pass) =>
      pass().catch((error: unknown) => {
        const sandbox_id = ids.get(request.sandbox_name);
        if (!sandbox_id || !has(error, "NOT_FOUND")) throw error;
        return pass({ ...request, sandbox_id });
      }),
  };
});

mutant("ListSandboxes hides what does not run", ["DC-49", "DC-60", "DC-61"], {
  async ListSandboxes(_, pass) {
    const exited = ({ status }: Sandbox) =>
      status?.conditions.some(({ reason }) => reason === "ContainerExited");
    return { sandboxes: (await pass()).sandboxes.filter((sandbox) => !exited(sandbox)) };
  },
});

mutant(
  "ListSandboxes takes every sandbox for failed",
  ["DC-50", "DC-61", "DC-92", "DC-97", "DC-109", "DC-176"],
  {
    async ListSandboxes(_, pass) {
      const conditions = [{ type: "Ready", status: "False", reason: "Failed" }];
      const { sandboxes } = await pass();
      return {
        sandboxes: sandboxes.map((sandbox) => ({ ...sandbox, status: { ...sandbox.status, conditions } })),
      };
    },
  },
);

mutant("ListSandboxes answers NOT_FOUND when there are none", ["DC-51", "DC-52", "DC-174"], {
  async ListSandboxes(_, pass) {
    const response = await pass();
    if (response.sandboxes.length === 0) throw refusal("NOT_FOUND");
    return response;
  },
});

/** What all drivers of the machine made. */
const made = new Map<string, Sandbox>();
mutant("ListSandboxes has the sandboxes of all drivers on the machine", ["DC-52"], {
  async CreateSandbox({ sandbox }, pass) {
    const response = await pass();
    if (sandbox) made.set(sandbox.id, sandbox);
    return response;
  },
  async DeleteSandbox({ sandbox_id }, pass) {
    const response = await pass();
    // Only now: a create that was under way has ended by then.
    made.delete(sandbox_id);
    return response;
  },
  async ListSandboxes(_, pass) {
    const { sandboxes } = await pass();
    const others = [...made.values()].filter(({ id }) => sandboxes.every((own) => own.id !== id));
    return { sandboxes: [...sandboxes, ...others] };
  },
});

mutant("ListSandboxes has another order each time", ["DC-53"], () => {
  let calls = 0;
  return {
    async ListSandboxes(_, pass) {
      const { sandboxes } = await pass();
      return { sandboxes: calls++ % 2 ? sandboxes.toReversed() : sandboxes };
    },
  };
});

// J Workspaces

mutant("EnsureWorkspace fails for a workspace that is there", ["DC-99"], () => {
  const there = new Set<string>();
  return {
    async EnsureWorkspace({ workspace }, pass) {
      if (there.has(workspace)) throw refusal("ALREADY_EXISTS");
      there.add(workspace);
      return pass();
    },
  };
});

mutant("DeleteWorkspace fails for a workspace that is not there", ["DC-100"], () => {
  const there = new Set<string>();
  return {
    EnsureWorkspace({ workspace }, pass) {
      there.add(workspace);
      return pass();
    },
    async DeleteWorkspace({ workspace }, pass) {
      if (!there.delete(workspace)) throw refusal("NOT_FOUND");
      return pass();
    },
  };
});

mutant(
  "CreateSandbox wants any workspace but the default one to be ensured",
  ["DC-29", "DC-31", "DC-101", "DC-130", "DC-142"],
  () => {
    const there = new Set(["default"]);
    return {
      EnsureWorkspace({ workspace }, pass) {
        there.add(workspace);
        return pass();
      },
      async CreateSandbox({ sandbox }, pass) {
        if (sandbox && !there.has(sandbox.workspace)) throw refusal("FAILED_PRECONDITION");
        return pass();
      },
    };
  },
);

mutant("Fails over a workspace without a name", ["DC-102"], {
  async EnsureWorkspace({ workspace }, pass) {
    if (!workspace) throw refusal("INTERNAL");
    return pass();
  },
});

mutant("DeleteWorkspace deletes every sandbox", ["DC-142"], () => {
  let deleted = false;
  return {
    DeleteWorkspace(_, pass) {
      deleted = true;
      return pass();
    },
    async GetSandbox(_, pass) {
      if (deleted) throw refusal("NOT_FOUND");
      return pass();
    },
  };
});
