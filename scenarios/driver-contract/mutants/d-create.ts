// SPDX-License-Identifier: Apache-2.0

/** Drivers that create something other than they were asked for. */

import type { Interceptors } from "../../../harness/runtime/faults/tap.ts";
import { mutant, refusal } from "../../../harness/conformance/mutant.ts";
import type { DriverSandbox__Output as Sandbox } from "../../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { DriverSandboxSpec__Output as Spec } from "../../../proto/v0.0/types/openshell/compute/v1/DriverSandboxSpec.ts";
import type { DriverSandboxTemplate__Output as Template } from "../../../proto/v0.0/types/openshell/compute/v1/DriverSandboxTemplate.ts";
import { has, failing } from "./broken.ts";

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

const values = <Value, Other>(map: Record<string, Value>, change: (value: Value) => Other) =>
  Object.fromEntries(Object.entries(map).map(([key, value]) => [key, change(value)]));

const isNowhere = (sandbox: Sandbox | null): boolean =>
  sandbox?.spec?.template?.image.includes("no-such-image-") ?? false;

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

mutant("CreateSandbox refuses what has failed before", ["DC-160"], () => {
  const failed = new Set<string>();
  return {
    CreateSandbox: async ({ sandbox }, pass) => {
      const id = sandbox?.id ?? "";
      if (failed.has(id)) throw refusal("ALREADY_EXISTS");
      failed.add(id);
      const answer = await pass();
      failed.delete(id);
      return answer;
    },
  };
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

mutant("The name of a deleted sandbox stays taken", ["DC-141"], () => {
  const taken = new Map<string, string>();
  return {
    CreateSandbox: async ({ sandbox }, pass) => {
      const { id = "", name = "", workspace = "" } = sandbox ?? {};
      const full = `${workspace}/${name}`;
      if ((taken.get(full) ?? id) !== id) throw refusal("ALREADY_EXISTS");
      taken.set(full, id);
      return pass();
    },
  };
});
