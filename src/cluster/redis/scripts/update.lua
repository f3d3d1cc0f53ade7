-- Carries an operation of a node out: `SharedState::update`.
--
-- KEYS: version, sequences, expired, owned, occupied, records, reader, dropped of the partition (and the node);
--       holders, version, members of the group; members that the node has in it
-- ARGV: publish, number of the partition, node_topics, topic of the group, node, sequence, group,
--       holds, is_complete, wants_members, is_recorded (1 or 0), number of present members, id and info of each,
--       the ids of gone members
local node, sequence, name = ARGV[5], ARGV[6], ARGV[7]
local holds, is_complete, wants_members, is_recorded =
  ARGV[8] == '1', ARGV[9] == '1', ARGV[10] == '1', ARGV[11] == '1'
local part = {
  version = KEYS[1], occupied = KEYS[5], records = KEYS[6], reader = KEYS[7],
  dropped = KEYS[8],
  publish = ARGV[1], number = ARGV[2], node_topics = ARGV[3],
}
local group = {
  name = name, topic = ARGV[4], is_recorded = is_recorded,
  holders = KEYS[9], version = KEYS[10], members = KEYS[11], present = KEYS[12],
}
local sequences, expired, owned = KEYS[2], KEYS[3], KEYS[4]

if redis.call('EXISTS', expired) == 1 then
  return { 'expired' }
end
if tonumber(sequence) <= tonumber(redis.call('HGET', sequences, node) or 0) then
  return { 'stale' }
end
redis.call('HSET', sequences, node, sequence)

if holds then
  -- The score tells `reap` whether to record transitions.
  redis.call('ZADD', owned, is_recorded and 1 or 0, 'g' .. name)
  hold(part, group, node)
  local is_present = {}
  local gone = 13 + 2 * tonumber(ARGV[12])
  for at = 13, gone - 1, 2 do
    is_present[ARGV[at]] = true
    add(part, group, ARGV[at], ARGV[at + 1])
  end
  for at = gone, #ARGV do
    remove(part, group, ARGV[at])
  end
  if is_complete then
    for _, member in ipairs(redis.call('ZRANGE', group.present, 0, -1)) do
      if not is_present[member] then
        remove(part, group, member)
      end
    end
  end
else
  leave(part, group, node, -1)
  redis.call('ZREM', owned, 'g' .. name)
end
announce_records(part)

local members = wants_members and redis.call('HGETALL', group.members)
return { 'ok', last_version(group), redis.call('EXISTS', group.holders), members }
