-- Names of occupied groups that start with a prefix, each followed by how many members it has.
--
-- KEYS: occupied groups of the partition. Those of the members are found only here, in the same slot.
-- ARGV: prefix, what the partition's keys begin with
local found = {}
-- No name has the byte 255: they are UTF-8.
for _, name in ipairs(redis.call('ZRANGEBYLEX', KEYS[1], '[' .. ARGV[1], '(' .. ARGV[1] .. '\255')) do
  found[#found + 1] = name
  found[#found + 1] = redis.call('HLEN', ARGV[2] .. 'm:' .. name)
end
return found
