// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

static char *whom = "nobody";
module_param(whom, charp, 0444);
MODULE_PARM_DESC(whom, "whom to greet");

static int __init hello_init(void)
{
	pr_info("hello: greetings to %s\n", whom);
	return 0;
}

static void __exit hello_exit(void)
{
}

module_init(hello_init);
module_exit(hello_exit);
MODULE_DESCRIPTION("Greets");
MODULE_LICENSE("GPL");
