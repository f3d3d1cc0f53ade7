-- The state of one node in one group, and the transitions that follow: `SharedState` in src/cluster/shared_state.rs.
--
-- part:  version, occupied, records, reader, dropped
--                                             keys of the partition
--        publish                              PUBLISH, or SPUBLISH in a Redis Cluster
--        number, node_topics                  of the partition; prefix of the topics of single nodes
-- group: name, topic, is_recorded
--        version, holders, members            keys of the group
--        present                              key of the node's members in it
--
-- members: a hash, `<version of joining> <number of nodes> <info>`
-- holders: a set of nodes; present: a sorted set, all scores 0, so that it is in the order of bytes

-- Records of a partition. If no node reads them, the oldest are dropped and counted, before Redis runs out of memory: at
-- this limit all 64 partitions together use about a gigabyte.
local RECORDS_MAX = 100000

-- Publishes a transition and stores its record. Returns its version.
local function transition(part, group, change, member, info)
  local version, time = next_version(part.version)
  local previous = redis.call('GET', group.version) or '0'
  redis.call('SET', group.version, version)
  local text = previous .. ' ' .. version .. ' ' .. change .. ' ' .. #member .. ' ' .. member .. info
  redis.call(part.publish, group.topic, '1T' .. text)
  if group.is_recorded then
    local records = redis.call('XLEN', part.records) + 1
    redis.call('XADD', part.records, 'MAXLEN', '~', RECORDS_MAX, version .. '-0',
      'group', group.name, 'change', text, 'time', time)
    local dropped = records - redis.call('XLEN', part.records)
    if dropped > 0 then
      redis.call('INCRBY', part.dropped, dropped)
    end
    part.has_records = true
  end
  return version
end

-- Announces new records to the reader of the partition.
local function announce_records(part)
  local reader = part.has_records and redis.call('GET', part.reader)
  if reader then
    redis.call('PUBLISH', part.node_topics .. reader, '1R' .. part.number)
  end
end

local function hold(part, group, node)
  if redis.call('SADD', group.holders, node) == 1 and redis.call('SCARD', group.holders) == 1 then
    redis.call('ZADD', part.occupied, 0, group.name)
    transition(part, group, 'o', '', '')
  end
end

local function add(part, group, member, info)
  if redis.call('ZADD', group.present, 'NX', 0, member) == 0 then
    return
  end
  local entry = redis.call('HGET', group.members, member)
  if entry then
    local joined, nodes, first_info = string.match(entry, '^(%d+) (%d+) (.*)$')
    redis.call('HSET', group.members, member, joined .. ' ' .. (nodes + 1) .. ' ' .. first_info)
  else
    local joined = transition(part, group, 'a', member, info)
    redis.call('HSET', group.members, member, joined .. ' 1 ' .. info)
  end
end

local function remove(part, group, member)
  if redis.call('ZREM', group.present, member) == 0 then
    return
  end
  local entry = redis.call('HGET', group.members, member)
  if not entry then
    return
  end
  local joined, nodes, info = string.match(entry, '^(%d+) (%d+) (.*)$')
  if tonumber(nodes) > 1 then
    redis.call('HSET', group.members, member, joined .. ' ' .. (nodes - 1) .. ' ' .. info)
  else
    redis.call('HDEL', group.members, member)
    transition(part, group, 'r', member, '')
  end
end

-- Removes at most `members_max` members of the node (-1: all of them), and once it has none, the node as a holder.
-- Returns the number of members that were removed, and whether the node has left the group.
local function leave(part, group, node, members_max)
  local members = redis.call('ZRANGE', group.present, 0, members_max < 0 and -1 or members_max - 1)
  for _, member in ipairs(members) do
    remove(part, group, member)
  end
  if redis.call('EXISTS', group.present) == 1 then
    return #members, false
  end
  if redis.call('SREM', group.holders, node) == 1 and redis.call('EXISTS', group.holders) == 0 then
    redis.call('ZREM', part.occupied, group.name)
    transition(part, group, 'v', '', '')
  end
  return #members, true
end

-- Returns the version of the group's last transition. Deletes it if the group is empty.
local function last_version(group)
  local version = redis.call('GET', group.version) or '0'
  if redis.call('EXISTS', group.holders, group.members) == 0 then
    redis.call('DEL', group.version)
  end
  return version
end

