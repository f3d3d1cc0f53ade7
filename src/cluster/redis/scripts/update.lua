-- Carries an operation of a node out: `Truth::update`.
--
-- KEYS: version, numbers, given up, listed, occupied, records, reader, dropped of the partition (and the node);
--       holders, version, members of the group; members that the node has in it
-- ARGV: publish, number of the partition, node_topics, topic of the group, node, number, group,
--       holds, is_all, asks, is_noted (1 or 0), how many are here, id and info of each, the ids of who is gone
local node, number, name = ARGV[5], ARGV[6], ARGV[7]
local holds, is_all, asks, is_noted = ARGV[8] == '1', ARGV[9] == '1', ARGV[10] == '1', ARGV[11] == '1'
local part = {
  version = KEYS[1], occupied = KEYS[5], records = KEYS[6], reader = KEYS[7],
  dropped = KEYS[8],
  publish = ARGV[1], number = ARGV[2], node_topics = ARGV[3],
}
local group = {
  name = name, topic = ARGV[4], is_noted = is_noted,
  holders = KEYS[9], version = KEYS[10], members = KEYS[11], here = KEYS[12],
}
local numbers, given_up, listed = KEYS[2], KEYS[3], KEYS[4]

if redis.call('EXISTS', given_up) == 1 then
  return { 'given up' }
end
if tonumber(number) <= tonumber(redis.call('HGET', numbers, node) or 0) then
  return { 'late' }
end
redis.call('HSET', numbers, node, number)

if holds then
  -- The score says whether `reap` is to note what it takes.
  redis.call('ZADD', listed, is_noted and 1 or 0, 'g' .. name)
  hold(part, group, node)
  local is_here = {}
  local gone = 13 + 2 * tonumber(ARGV[12])
  for at = 13, gone - 1, 2 do
    is_here[ARGV[at]] = true
    add(part, group, ARGV[at], ARGV[at + 1])
  end
  for at = gone, #ARGV do
    remove(part, group, ARGV[at])
  end
  if is_all then
    for _, member in ipairs(redis.call('ZRANGE', group.here, 0, -1)) do
      if not is_here[member] then
        remove(part, group, member)
      end
    end
  end
else
  leave(part, group, node, -1)
  redis.call('ZREM', listed, 'g' .. name)
end
call_reader(part)

local members = asks and redis.call('HGETALL', group.members)
return { 'done', last_version(group), redis.call('EXISTS', group.holders), members }
