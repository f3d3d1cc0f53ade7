/** Real servers of Redis on free ports: one alone, with sentinels, or as a Redis Cluster. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { startChild } from './child.mjs';
import { eventually } from './stage.mjs';

const HOST = '127.0.0.1';
const START_TIMEOUT_MS = 10_000;
const ATTEMPTS_MAX = 20;
/** Below the ports that systems give out, so that nobody takes one while its server restarts. */
const PORTS = { first: 12_000, count: 18_000 };

class Redis {
  port;
  #directory;
  #args;
  #process;
  #output = '';

  /** `files` of its directory by name; `args` go after the port. */
  static async start({ files = {}, args = [] } = {}) {
    const redis = new Redis();
    redis.#args = args;
    redis.#directory = await mkdtemp(join(tmpdir(), 'pusherd-redis-'));
    for (const [name, text] of Object.entries(files)) await writeFile(join(redis.#directory, name), text);
    for (let attempt = 1; ; attempt += 1) {
      redis.port = PORTS.first + Math.floor(Math.random() * PORTS.count);
      try {
        await redis.restart();
        return redis;
      } catch (error) {
        if (attempt === ATTEMPTS_MAX || !redis.#output.includes('in use')) throw error;
      }
    }
  }

  /** Starts the process again on the same port; it knows nothing of what was, unless its arguments say so. */
  async restart() {
    this.#output = '';
    const args = [...this.#args, '--port', String(this.port), '--bind', HOST];
    const child = startChild('redis-server', args, { cwd: this.#directory, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#process = child;
    await new Promise((resolve, reject) => {
      const fail = (reason) => {
        child.kill('SIGKILL');
        reject(new Error(`redis-server ${reason}; it printed:\n${this.#output}`));
      };
      const timer = setTimeout(() => fail('did not start'), START_TIMEOUT_MS);
      const read = (chunk) => {
        this.#output += chunk;
        if (!/Ready to accept connections|\+monitor/.test(this.#output)) return;
        clearTimeout(timer);
        resolve();
      };
      child.stdout.setEncoding('utf8').on('data', read);
      child.stderr.setEncoding('utf8').on('data', read);
      child.once('error', (error) => fail(`did not start: ${error.message}`));
      child.exited.then(() => {
        clearTimeout(timer);
        fail('ended early');
      });
    });
  }

  get address() {
    return `${HOST}:${this.port}`;
  }

  /** What it answers to a command. */
  async command(...words) {
    return redisCli('-h', HOST, '-p', String(this.port), ...words);
  }

  /** The process dies at once. */
  async crash() {
    const child = this.#process;
    child.kill('SIGKILL');
    await child.exited;
  }

  /** The process stands still until it is resumed; its connections stay. */
  suspend() {
    this.#process.kill('SIGSTOP');
  }

  resume() {
    this.#process.kill('SIGCONT');
  }

  async stop() {
    await this.crash();
    await rm(this.#directory, { recursive: true, force: true });
  }
}

/** What `redis-cli` prints. */
async function redisCli(...args) {
  const { stdout } = await promisify(execFile)('redis-cli', args, { encoding: 'utf8' });
  const answer = stdout.trim();
  assert.doesNotMatch(answer, /^(\(error\)|ERR|NOPERM|NOAUTH|READONLY|LOADING|CLUSTERDOWN)/, `redis-cli ${args.join(' ')}`);
  return answer;
}

const FORGETFUL = ['--save', '', '--appendonly', 'no'];

/** One server, which keeps nothing on a disk. `settings` is the section `[redis]` of a node. The caller stops it. */
export async function startRedis(args = []) {
  const redis = await Redis.start({ args: [...FORGETFUL, ...args] });
  redis.settings = { host: HOST, port: redis.port };
  return redis;
}

/** What several servers have in common. */
class Servers {
  servers = [];

  async add(options) {
    const redis = await Redis.start(options);
    this.servers.push(redis);
    return redis;
  }

  /** Those that take writes now, of all that answer. */
  async masters() {
    const roles = await Promise.allSettled(this.servers.map((redis) => redis.command('ROLE')));
    return this.servers.filter((_, at) => roles[at].value?.startsWith('master'));
  }

  async stop() {
    await Promise.all(this.servers.map((redis) => redis.stop()));
  }
}

/** Starts with `fill`, and stops what was started if that fails. */
async function started(servers, fill) {
  try {
    await fill(servers);
    return servers;
  } catch (error) {
    await servers.stop();
    throw error;
  }
}

const MASTER_NAME = 'main';

/** A master with two replicas, and three sentinels that give it up after a second. The caller stops all of it. */
export function startSentinels() {
  return started(new Servers(), async (servers) => {
    const master = await servers.add({ args: FORGETFUL });
    const replica = { args: [...FORGETFUL, '--replicaof', `${HOST} ${master.port}`] };
    for (let count = 0; count < 2; count += 1) await servers.add(replica);
    const text = [
      `sentinel monitor ${MASTER_NAME} ${HOST} ${master.port} 2`,
      `sentinel down-after-milliseconds ${MASTER_NAME} 1000`,
      `sentinel failover-timeout ${MASTER_NAME} 5000`,
    ];
    const sentinel = { args: ['sentinel.conf', '--sentinel'], files: { 'sentinel.conf': text.join('\n') } };
    const sentinels = [];
    for (let count = 0; count < 3; count += 1) sentinels.push(await servers.add(sentinel));
    await eventually(async () => {
      for (const one of sentinels) assert.match(await one.command('SENTINEL', 'CKQUORUM', MASTER_NAME), /^OK 3/);
      assert.match(await master.command('INFO', 'replication'), /connected_slaves:2/);
      assert.match(await sentinels[0].command('SENTINEL', 'MASTER', MASTER_NAME), /num-slaves\n2/);
    }, 30_000);
    servers.settings = { sentinels: sentinels.map(({ address }) => address), sentinel_master: MASTER_NAME };
    servers.failOver = () => sentinels[0].command('SENTINEL', 'FAILOVER', MASTER_NAME);
  });
}

/** A Redis Cluster of three masters, each with a replica. The caller stops all of it. */
export function startRedisCluster() {
  return started(new Servers(), async (servers) => {
    const args = [...FORGETFUL, '--cluster-enabled', 'yes', '--cluster-node-timeout', '2000'];
    for (let count = 0; count < 6; count += 1) await servers.add({ args });
    const nodes = servers.servers.map(({ address }) => address);
    await redisCli('--cluster', 'create', ...nodes, '--cluster-replicas', '1', '--cluster-yes');
    await eventually(async () => {
      for (const server of servers.servers) {
        assert.match(await server.command('CLUSTER', 'INFO'), /cluster_state:ok[^]*cluster_known_nodes:6/);
        assert.match(await server.command('INFO', 'replication'), /connected_slaves:1|master_link_status:up/);
      }
    }, 30_000);
    servers.settings = { nodes };
    servers.failOver = async () => {
      const masters = await servers.masters();
      const replica = servers.servers.find((server) => !masters.includes(server));
      await replica.command('CLUSTER', 'FAILOVER');
    };
    /** Moves slots from one master to another. */
    servers.reshard = async (slots) => {
      const [from, to] = await servers.masters();
      const [source, target] = [await from.command('CLUSTER', 'MYID'), await to.command('CLUSTER', 'MYID')];
      const which = ['--cluster-from', source, '--cluster-to', target, '--cluster-slots', String(slots)];
      await redisCli('--cluster', 'reshard', from.address, ...which, '--cluster-yes');
    };
  });
}
